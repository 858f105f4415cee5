"""Measure what a rank really holds and sends, for comparison with the plan.

As a program it takes the flags of train.py, runs one optimizer step, and prints both as a line of JSON.
"""

import gc
import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

KINDS = {
    "adam_m": "moments",
    "adam_v": "moments",
    "accumulated": "gradients",
    "part": "slices",
}  # by prefix of the name
SENT = re.compile(r"= AllReduce\(.*\n *: \(<Tensor\[Float32\], \(([\d, ]+)\)>\)")  # single numbers do not match


def parameters():
    """Return all Parameter objects of this process, except those of MindSpore's random generator."""
    gc.collect()
    found = [one for one in gc.get_objects() if issubclass(type(one), Parameter)]
    return [one for one in found if not one.name.startswith("Parameter#")]


def bytes_by_kind(held):
    """Return the bytes of parameters' values by kind: weights, and the values of KINDS."""
    total = Counter(weights=0, moments=0, gradients=0, slices=0)
    for parameter in held:
        total[KINDS.get(parameter.name.partition(".")[0], "weights")] += parameter.asnumpy().nbytes
    return dict(total)


class Sent:
    """Counts the bytes that go into AllReduce, except single numbers. On a CPU all collectives are made of it.

    It reads the optimized graphs that MindSpore really runs, and counts how often each one runs.
    """

    def __init__(self, folder):
        self.folder, self.runs = Path(folder), Counter()

    def __enter__(self):
        self.call = nn.Cell.__call__
        os.environ["MS_DEV_DUMP_IR_PASSES"] = "graph_build"  # save_graphs writes only these graphs

        def count(cell, *inputs):
            """Call a cell. If it is compiled now, its graphs go to a folder for this cell."""
            path = str(self.folder / str(id(cell)))
            self.runs[path] += 1
            ms.set_context(save_graphs=1, save_graphs_path=path)
            return self.call(cell, *inputs)

        nn.Cell.__call__ = count
        return self

    def __exit__(self, *error):
        nn.Cell.__call__ = self.call

    def bytes(self):
        """Return the bytes in all runs of all graphs."""
        total = 0
        for path, runs in self.runs.items():
            graphs = [file.read_text() for file in Path(path).rglob("graph_build_*.ir")]
            assert graphs
            shapes = [shape for graph in graphs for shape in SENT.findall(graph)]
            total += runs * sum(math.prod(map(int, shape.split(", "))) for shape in shapes) * np.float32().nbytes
        return total


def main():
    from src.common.cli import parse
    from src.parallel.mesh import prepare_device
    from src.training.config import TrainConfig
    from src.training.trainer import Trainer

    config = parse(TrainConfig, "reality.py")
    prepare_device(config.parallel)
    trainer = Trainer(config)
    held = bytes_by_kind(parameters())
    with Sent(f"graphs{trainer.mesh.rank}") as sent:
        trainer._step(trainer.train_batches.iterate(0))
    print(json.dumps(held | {"sent": sent.bytes()}), flush=True)


if __name__ == "__main__":
    main()
