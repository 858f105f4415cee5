"""The scheduler of MindSpore's dynamic cluster: the process at which the ranks register and which detects dead ranks.

`python -m src.parallel.launch` starts it on the machine of rank 0. It reads MS_ROLE, MS_SCHED_HOST, MS_SCHED_PORT and
MS_WORKER_NUM, and ends when the last rank has left.
"""

import mindspore as ms
from mindspore.communication import init

if __name__ == "__main__":
    ms.set_context(device_target="CPU")
    init()
