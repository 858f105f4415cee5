"""Compile a graph of one rank. This is the work of each rank's process."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.common.process import peak_memory
from src.pangu_alpha_config import RunConfig
from src.parallel.semi_auto.dry_run.compiled_graph import Graph, read_graph

CALL_DEPTH = 100000


@dataclass
class Compiled:
    """A compiled graph of a rank, and the cost of its compilation.

    Args:
        graph: What the graph holds and sends.
        slices: Shape of each parameter before optimizer_shard cuts it, by name.
        seconds: Time of the compiler, in seconds.
        peak_memory: Most memory of the process, in bytes.
        options: What the compiler was told, apart from defaults.
    """

    graph: Graph
    slices: dict[str, tuple[int, ...]]
    seconds: float
    peak_memory: int
    options: list[str]


def compile_graph(config: RunConfig, rank: int, graph: str, rows: int, folder: Path) -> Compiled:
    """Compile a graph of a rank. A process can do this only once.

    Args:
        config: Settings of the run.
        rank: Number of the rank.
        graph: "training" (an optimizer step), "prefill" or "decode".
        rows: Texts at once, for prefill and decode.
        folder: An empty folder for the compiler's text.
    """
    _prepare(config, rank, folder)
    if graph == "training":
        return _training(config, rank, folder)
    return _generation(config, rank, rows, config.model.seq_length if graph == "prefill" else 1, folder)


def _training(config: RunConfig, rank: int, folder: Path) -> Compiled:
    from src.parallel.semi_auto.train_step import compile_step

    began = time.perf_counter()
    step, _ = compile_step(config, rank)
    return _compiled(step, time.perf_counter() - began, folder, config)


def _generation(config: RunConfig, rank: int, rows: int, tokens: int, folder: Path) -> Compiled:
    """Compile the graph that takes `tokens` new tokens of each row: a whole prompt, or one token."""
    from mindspore import Tensor
    from mindspore.nn.utils import no_init_parameters

    from src.pangu_alpha import PanguAlphaModel
    from src.parallel.plan.plan import Plan
    from src.parallel.semi_auto.context import enter
    from src.parallel.semi_auto.generation import SemiAutoNextLogits, make_caches, make_paged_caches
    from src.parallel.semi_auto.strategies import annotate_model

    plan = Plan.of(config.parallel, config.model)
    inputs = [Tensor(np.zeros(shape, np.int32)) for shape in ((rows, tokens), (rows,), (rows,), (rows,))]
    enter(config, rank, [tensor.ndim for tensor in inputs])
    with no_init_parameters():
        model = PanguAlphaModel(config.model)
        annotate_model(model, plan)
        make = make_paged_caches if config.has_flash_generation else make_caches
        cell = SemiAutoNextLogits(model, make(model, plan, rows, config.model.seq_length), tokens)
    cell.set_train(False)
    began = time.perf_counter()
    cell.compile(*inputs)
    return _compiled(cell, time.perf_counter() - began, folder, config)


def _prepare(config: RunConfig, rank: int, folder: Path) -> None:
    os.environ |= {
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_DUMP_IR_PASSES": "validate",
        "MS_DEV_SAVE_GRAPHS_PATH": str(folder),
    }
    from src.parallel.semi_auto.dry_run.simulation import simulate

    simulate(config.parallel.device_target, config.parallel.world_size, rank)
    import mindspore as ms

    from src.parallel.compiler_options import set_compiler_options

    set_compiler_options(config.parallel)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(CALL_DEPTH)


def _compiled(cell: Any, seconds: float, folder: Path, config: RunConfig) -> Compiled:
    from src.parallel.compiler_options import compiler_options

    graph = read_graph(max(folder.glob("*validate*.ir")), config.model.num_layers)
    slices = {name: tuple(layout[2]) for name, layout in cell.parameter_layout_dict.items()}
    return Compiled(graph, slices, seconds, peak_memory(), compiler_options())
