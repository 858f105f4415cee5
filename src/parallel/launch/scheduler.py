"""The process at which the ranks of MindSpore's dynamic cluster meet, and which misses those that die.

`python -m src.parallel.launch` starts it beside the ranks of the machine with rank 0. It reads MS_ROLE, MS_SCHED_HOST,
MS_SCHED_PORT and MS_WORKER_NUM, and ends when the last rank has left.
"""

import mindspore as ms
from mindspore.communication import init

if __name__ == "__main__":
    ms.set_context(device_target="CPU")
    init()
