"""Rewrite a checkpoint with the slices of another plan, one parameter at a time."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.checkpoint import ckpt_file, store
from src.checkpoint.finite import require_finite
from src.checkpoint.slices import SavedSlices
from src.common.errors import InputError
from src.common.files import written_whole
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import RunConfig, load_config
from src.parallel.plan.holder import MOMENTS, Holder, parameter_of
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import Box, parameter_shapes


@dataclass
class Summary:
    """Summary of a new checkpoint, for the closing line.

    Args:
        step: Training step.
        ranks: Number of ranks that the checkpoint is sliced for.
        files: Number of .ckpt files.
        parameters: Number of the model's parameters.
        moments: Number of the optimizer's moments.
        bytes: Size of the .ckpt files.
    """

    step: int
    ranks: int
    files: int
    parameters: int
    moments: int
    bytes: int

    def __str__(self) -> str:
        files = f"{self.files} file{'s'[: self.files != 1]} of {self.ranks} rank{'s'[: self.ranks != 1]}"
        return (
            f"step {self.step}, {self.parameters} parameters and {self.moments} moments in {files}, "
            f"{self.bytes:,} bytes"
        )


def reslice(source: str, output: Path, parallel: ParallelConfig | None = None, allow_nan: bool = False) -> Summary:
    """Write a checkpoint's slices for the ranks of another plan. The values stay bit for bit.

    Args:
        source: A checkpoint folder, or a run's folder with its newest whole checkpoint.
        output: Checkpoint folder to write.
        parallel: The plan; None for one process.
        allow_nan: Accept NaN and infinite values.

    Raises:
        InputError: The source is not a whole checkpoint, the plan does not fit its model, `output` exists, or
            a parameter or moment has NaN or infinite values.
    """
    checkpoint = store.find_folder(source)
    if checkpoint is None:
        raise InputError(
            f"--checkpoint {source} is not a checkpoint: give a run's output folder or one of its step_* folders"
        )
    if output.exists():
        raise InputError(f"--output {output} is there already; name a new folder")
    config = _with_plan(load_config(checkpoint / store.CONFIG_FILE), parallel)
    plan, shapes = Plan.of(config.parallel, config.model), parameter_shapes(config.model)
    saved = store.open_slices(checkpoint)
    moments = [prefix + name for prefix in MOMENTS for name in shapes if prefix + name in saved.names]
    _check(saved, shapes, [*shapes, *moments])
    state = store.read_state(checkpoint)
    with written_whole(output) as temporary:
        temporary.mkdir(parents=True)
        with tqdm(total=_bytes(saved, [*shapes, *moments]), unit="B", unit_scale=True, disable=None) as bar:
            reports = [
                _write_rank(temporary, saved, Holder(plan, rank, shapes), moments, allow_nan, bar)
                for rank in range(plan.world_size)
            ]
        store.complete(temporary, reports, state, config.save)
    written = [file["bytes"] for report in reports for file in report["files"].values()]
    return Summary(state["step"], plan.world_size, len(written), len(shapes), len(moments), sum(written))


def _with_plan(config: RunConfig, parallel: ParallelConfig | None) -> RunConfig:
    if parallel is None:
        parallel = replace(
            config.parallel,
            world_size=1,
            data=1,
            tensor=1,
            pipeline=1,
            virtual_stages=1,
            pipeline_scheduler="1f1b",
            expert=1,
            optimizer_shard=False,
            sequence_parallel=False,
        )
    return replace(config, parallel=parallel)


def _check(saved: SavedSlices, shapes: dict[str, tuple[int, ...]], names: Iterable[str]) -> None:
    for name in names:
        if name not in saved.names:
            raise InputError(f"{saved.source} has no parameter '{name}', which the model of its config.yaml has")
        shape = shapes[parameter_of(name)]
        if saved.whole(name).shape != shape:
            raise InputError(f"{saved.source}: '{name}' is {saved.whole(name).shape}, but by its config.yaml {shape}")
        saved.check(name, Box.whole(shape))
    unknown = set(saved.names).difference(names)
    if unknown:
        raise InputError(
            f"{saved.source} has {len(unknown)} parameters that the model of its config.yaml does not have, "
            f"such as '{min(unknown)}'"
        )


def _bytes(saved: SavedSlices, names: Iterable[str]) -> int:
    wholes = [saved.whole(name) for name in names]
    return sum(whole.box.size * ckpt_file.DTYPES[whole.dtype].itemsize for whole in wholes)


def _write_rank(
    folder: Path, saved: SavedSlices, holder: Holder, moments: list[str], allow_nan: bool, bar: tqdm
) -> dict:
    """Write the files of a rank, and return their report for `store.complete`."""

    def read(name: str) -> np.ndarray:
        values = saved.read(name, holder.box(name))
        bar.update(values.nbytes)
        if not allow_nan:
            require_finite(values, name, saved.source)
        return values

    kinds = {store.MODEL: holder.shapes, store.OPTIMIZER: moments}
    return store.write_slices(
        folder, holder, {kind: {name: partial(read, name) for name in names} for kind, names in kinds.items()}
    )
