"""Compile a training step for Ascend without one, under MindFormers' parallel settings, and compare it with the plan.

MindFormers builds the network and the optimizer. Its train-step cell cannot be built here: it reads values of tensors,
which needs the device. A cell with the same loss, gradients and update takes its place.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.common.errors import InputError

if TYPE_CHECKING:
    from mindspore import Tensor, nn

_BY_MINDFORMERS = {"data_parallel": "data", "model_parallel": "tensor"}


def sizes(yaml: Path, options: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of replicas and of parts, as keyword arguments of a `Plan`.

    Raises:
        InputError: The settings have another kind of parallelism.
    """
    from src.common.reading import read_yaml

    content = read_yaml(yaml)
    base = read_yaml(yaml.parent / content["base_config"]) if "base_config" in content else {}
    settings = (base.get("parallel_config") or {}) | (content.get("parallel_config") or {})
    settings |= {
        name.partition(".")[2]: value for name, value in options.items() if name.startswith("parallel_config.")
    }
    check_kinds(settings)
    found = {ours: settings.get(theirs, 1) for theirs, ours in _BY_MINDFORMERS.items()}
    for name, value in found.items():
        if not isinstance(value, int) or not 1 <= value <= 1 << 16:
            raise InputError(f"parallel_config: {name} parallel is {value!r}; it must be a number from 1 on")
    return found


def check_kinds(settings: dict[str, Any]) -> None:
    """Raise InputError for a kind of parallelism of MindFormers that the plug-in does not have."""
    for name in ("pipeline_stage", "expert_parallel", "context_parallel"):
        if settings.get(name, 1) not in (1, None):
            raise InputError(
                f"parallel_config.{name} is {settings[name]}: the plug-in has data_parallel and model_parallel; "
                "train.py has the others"
            )
    recompute = settings.get("recompute") or {}
    for name in ("select_recompute", "select_comm_recompute"):
        if recompute.get(name):
            raise InputError(f"recompute_config.{name}: the plug-in recomputes all layers or none (recompute)")
    if not isinstance(recompute.get("recompute", False), bool):
        raise InputError(
            f"recompute_config.recompute is {recompute['recompute']}: the plug-in recomputes all layers or none"
        )


def dry_run(yaml: str, options: dict[str, Any], names: Iterable[str]) -> None:
    """Compile the step of rank 0, and print its slices beside the plan's. MindSpore must not be imported yet.

    Args:
        yaml: Path of a YAML file of a size.
        options: Settings that replace the file's, by their place in it.
        names: Those whose names a user spelled.

    Raises:
        InputError: The settings do not fit, or MindSpore is another version.

    Exits:
        With status 1 if a slice differs.
    """
    import sys
    from importlib.metadata import version

    from src.parallel.semi_auto.dry_run.simulation import require_version, simulate

    parts, yaml = sizes(Path(yaml), options), str(Path(yaml).absolute())
    require_version(version("mindspore"))
    os.environ |= {"GLOG_v": "4"}  # else MindSpore reports at length that there is no device
    scratch = tempfile.TemporaryDirectory()  # MindSpore writes what it could not fold into the working folder
    os.chdir(scratch.name)
    simulate("Ascend", parts["data"] * parts["tensor"], 0)
    import mindspore as ms

    from ports.mindformers import register

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_recursion_limit(100000)
    register()
    from mindformers.tools.register import MindFormerConfig

    from ports.mindformers.configuration import check_names
    from src.parallel.plan.plan import Plan
    from src.parallel.plan.sharding import box, parameter_shapes

    config = MindFormerConfig(yaml)
    check_names(config, names)
    config.merge_from_dict(options)
    step, network = _build(config, parts)
    rows = config.runner_config.batch_size * parts["data"]
    seconds = _compile(step, network, rows)
    model = network.pangu.config
    plan, shapes = Plan(**parts, num_layers=model.num_layers), parameter_shapes(model)
    held = {name: tuple(layout[2]) for name, layout in step.parameter_layout_dict.items() if name in shapes}
    planned = {name: box(name, shape, plan, plan.coordinates(0)).shape for name, shape in shapes.items()}
    differing = [name for name in planned if held.get(name) != planned[name]]
    size = sum(prod(shape) for shape in held.values())
    print(
        f"rank 0 of {plan.world_size} (data_parallel {parts['data']}, model_parallel {parts['tensor']}): compiled in "
        f"{seconds:.1f} s; it holds {len(held)} parameters with {size:,} of {model.num_parameters:,} values"
    )
    for name in differing:
        print(f"  differs: {name} is {held.get(name)}, planned {planned[name]}")
    if differing:
        sys.exit(1)
    print("  all slices are as planned")


def _build(config: Any, parts: dict[str, int]) -> tuple[nn.Cell, Any]:
    """Return the step and the network, built from MindFormers' settings."""
    import mindspore as ms
    from mindformers.core.optim.build_optim import build_optim
    from mindformers.models.build_model import build_network
    from mindformers.modules.transformer import TransformerOpParallelConfig, TransformerRecomputeConfig
    from mindformers.trainer.optimizer_grouped_parameters import get_optimizer_grouped_parameters
    from mindspore.nn.utils import no_init_parameters

    from ports.mindformers.training import SimulatedStep

    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.SEMI_AUTO_PARALLEL,
        device_num=parts["data"] * parts["tensor"],
        global_rank=0,
        full_batch=True,
        gradients_mean=False,
        enable_alltoall=True,
    )
    parallel = TransformerOpParallelConfig(
        data_parallel=parts["data"],
        model_parallel=parts["tensor"],
        use_seq_parallel=config.parallel_config.use_seq_parallel or False,
        recompute=TransformerRecomputeConfig(**config.recompute_config),
    )
    config.model.model_config.checkpoint_name_or_path = ""
    with no_init_parameters():
        network = build_network(config.model, default_args={"parallel_config": parallel}).set_train(True)
        groups = get_optimizer_grouped_parameters(network, weight_decay=config.optimizer.weight_decay)
        optimizer = build_optim(config.optimizer, default_args={"params": groups, "learning_rate": 1e-4})
        step = SimulatedStep(network, optimizer).set_train(True)
    return step, network


def _compile(step: nn.Cell, network: Any, rows: int) -> float:
    """Compile the step for a batch of so many rows on all ranks together, and return the seconds."""
    import mindspore as ms
    import numpy as np

    model = network.pangu.config
    length = model.seq_length
    shapes = [((rows, length + 1), np.int32), ((rows, length), np.int32)]
    shapes += [((rows, length, length), np.bool_), ((rows, length), np.float32)]
    if model.has_dropout:
        shapes.append(((rows,), np.int32))
    inputs: list[Tensor] = [ms.Tensor(np.float32(1)) for _ in range(5)]
    inputs += [ms.Tensor(np.zeros(shape, dtype)) for shape, dtype in shapes]
    begin = time.perf_counter()
    try:
        step.compile(*inputs)
    except RuntimeError as error:
        # Once in a process, MindSpore asks for the device while it folds a constant. The second time it does without.
        if "device context failed" not in str(error):
            raise
        step.compile(*inputs)
    return time.perf_counter() - begin
