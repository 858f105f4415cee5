"""One rank's graphs, compiled: what the process of each rank does."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.pangu_alpha_config import RunConfig
from src.parallel.dry_run.graph import Graph, read_graph

CALL_DEPTH = 100000


@dataclass
class Compiled:
    """A rank's graph, and what it took.

    Args:
        graph: What it holds and sends.
        slices: Of each parameter the shape before optimizer_shard cuts it, by name.
        seconds: Of the compiler.
        peak_memory: Bytes of this process, at most.
    """

    graph: Graph
    slices: dict[str, tuple[int, ...]]
    seconds: float
    peak_memory: int


def compile_graph(config: RunConfig, rank: int, graph: str, rows: int, folder: Path) -> Compiled:
    """Compile one of a rank's graphs, once in a process.

    Args:
        config: Of the run.
        rank: Which one.
        graph: "training", an optimizer step; "prefill" or "decode".
        rows: Texts at once, of the latter two.
        folder: For the compiler's text; empty.
    """
    _prepare(config, rank, folder)
    return _training(config, rank, folder)


def _training(config: RunConfig, rank: int, folder: Path) -> Compiled:
    from mindspore import Tensor
    from mindspore.nn.utils import no_init_parameters

    from src.pangu_alpha import PanguAlphaModel
    from src.parallel.semi_auto_step import build_train_step, enter

    model, rows = config.model, config.training.batch_size * config.micro_steps
    length = model.seq_length
    batch = [Tensor(np.zeros(shape, dtype)) for shape, dtype in (
        ((rows, length + 1), np.int32), ((rows, length), np.int32), ((rows, length, length), np.bool_),
        ((rows, length), np.float32))]
    if model.dropout_rate:
        batch.append(Tensor(np.zeros(rows, np.int32)))
    enter(config, rank, [tensor.ndim for tensor in batch])
    with no_init_parameters():
        network = PanguAlphaModel(model)
    step, _ = build_train_step(config, network, rank)
    return _compile(step, batch, folder, config)


def _prepare(config: RunConfig, rank: int, folder: Path) -> None:
    os.environ |= {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_DUMP_IR_PASSES": "validate",
                   "MS_DEV_SAVE_GRAPHS_PATH": str(folder)}
    from src.parallel.dry_run.simulation import simulate

    target = config.parallel.device_target
    simulate("Ascend" if target == "CPU" else target, config.parallel.world_size, rank)
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(CALL_DEPTH)


def _compile(cell: object, inputs: list, folder: Path, config: RunConfig) -> Compiled:
    from mindspore.graph.api import _cell_graph_executor

    began = time.perf_counter()
    _cell_graph_executor.compile(cell, *inputs, phase="dry_run")
    seconds = time.perf_counter() - began
    graph = read_graph(max(folder.glob("*validate*.ir")), config.model.num_layers)
    slices = {name: tuple(layout[2]) for name, layout in cell.parameter_layout_dict.items()}
    return Compiled(graph, slices, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
