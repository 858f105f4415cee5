"""Save, find and load the checkpoints of a run.

A checkpoint is a folder `step_00000100` with model.ckpt, optimizer.ckpt, state.json and config.yaml. A run of several
ranks writes model_rank0000.ckpt, optimizer_rank0000.ckpt and so on instead, and a layout.json that says which part of
each parameter a file holds. Any number of ranks can load any checkpoint.

The folder is written under a temporary name and renamed, so a folder with the final name is whole. state.json holds the
size and CRC-32 of each file, to detect damage or a swap.
"""

import json
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor

from src.checkpoint import ckpt_file
from src.checkpoint.slices import SavedSlices, Slice
from src.common.errors import InputError
from src.common.files import TEMPORARY_PREFIX, fingerprint, flush, temporary_path
from src.common.reading import read_json
from src.parallel.plan.holder import MOMENTS, Holder

MODEL, OPTIMIZER = "model", "optimizer"
MODEL_FILE, OPTIMIZER_FILE = f"{MODEL}.ckpt", f"{OPTIMIZER}.ckpt"
STATE_FILE, CONFIG_FILE, LAYOUT_FILE = "state.json", "config.yaml", "layout.json"
_STEP_PREFIX, _REPLACED, _REPORT = "step_", ".replaced", "rank{:04d}.json"
_NOT_THE_MODELS = (*MOMENTS, "accumulated.")
ALONE = Holder()


def save(
    folder: Path,
    step: int,
    model: Iterable[Parameter],
    optimizer: Iterable[Parameter],
    state: dict,
    write_config: Callable[[Path], None],
    keep: int,
    holder: Holder = ALONE,
) -> Path:
    """Write checkpoint `step` into `folder` and remove all but the newest `keep`. All ranks must call it.

    Args:
        folder: Folder of the run's checkpoints.
        step: Training step.
        model: Parameters of this rank.
        optimizer: Moments of this rank.
        state: Other state that the run needs to continue; JSON. That of rank 0 is written.
        write_config: Writes the run's configuration to a path.
        keep: Number of checkpoints that stay.
        holder: This rank, and which slices it holds.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: A rank can't write, or the ranks do not write into the same folder. The older checkpoints stay.
    """
    final = folder / f"{_STEP_PREFIX}{step:08d}"
    temporary = temporary_path(final)
    with _all_ranks_write(final, temporary, holder):
        if holder.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(TEMPORARY_PREFIX + "*"):
                shutil.rmtree(leftover)
            temporary.mkdir()
    with _all_ranks_write(final, temporary, holder):
        contents = {MODEL: {p.name: p.asnumpy for p in model}, OPTIMIZER: {p.name: p.asnumpy for p in optimizer}}
        report = write_slices(temporary, holder, contents)
        if holder.rank:
            _write_json(temporary / _REPORT.format(holder.rank), report)
    with _all_ranks_write(final, temporary, holder):
        if holder.rank == 0:
            reports = [report, *(_taken_report(temporary, rank) for rank in range(1, holder.plan.world_size))]
            complete(temporary, reports, state | {"step": step}, write_config)
            _put_in_place(temporary, final)
            for old in checkpoints_of(folder)[:-keep]:
                shutil.rmtree(old)
    return final


@contextmanager
def _all_ranks_write(final: Path, temporary: Path, holder: Holder) -> Generator[None]:
    """Run a block on all ranks. If one of them can't write, the unfinished checkpoint is removed, and all raise."""
    problem = None
    try:
        yield
    except OSError as error:
        problem = error
    if not holder.all_true(problem is None):
        if holder.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = (problem.strerror or problem) if problem else "another rank reports it"
        raise InputError(
            f"checkpoint {final} can't be written: {reason}; the checkpoints before it are whole: make room, and the "
            "same command goes on from the newest"
        ) from problem


def write_slices(folder: Path, holder: Holder, contents: Mapping[str, Mapping[str, Callable[[], np.ndarray]]]) -> dict:
    """Write the slices that a rank is responsible for.

    Args:
        folder: Unfinished checkpoint folder.
        holder: The rank.
        contents: For MODEL and OPTIMIZER, functions that return the rank's arrays, by parameter. Each is called just
            before its array is written.

    Returns:
        The rank's report for `complete`: {"files": sizes and CRC-32, "layout": slices}; JSON.
    """
    files, layout = {}, {}
    for kind, values in contents.items():
        written = [name for name in values if holder.writes(name)]
        if not written:
            continue
        file = folder / (f"{kind}.ckpt" if holder.plan.world_size == 1 else f"{kind}_rank{holder.rank:04d}.ckpt")
        layout[file.name] = {}
        ckpt_file.write(file, _noted(((name, values[name]()) for name in written), holder, layout[file.name]))
        flush(file)
        files[file.name] = fingerprint(file)
    return {"files": files, "layout": layout}


def _noted(arrays: Iterable[tuple[str, np.ndarray]], holder: Holder, slices: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays, and note in `slices` which slice each is."""
    for name, array in arrays:
        shape, box = holder.place(name, array.shape)
        slices[name] = Slice(shape, ckpt_file.DTYPE_NAMES[array.dtype], box).to_json()
        yield name, array


def _taken_report(folder: Path, rank: int) -> dict:
    """Read and remove the report that a rank left in the folder."""
    path = folder / _REPORT.format(rank)
    if not path.is_file():
        raise InputError(
            f"rank {rank} has written nothing into {folder}: training.output must be a folder that all ranks share"
        )
    report = read_json(path)
    path.unlink()
    return report


def complete(folder: Path, reports: Sequence[dict], state: dict, write_config: Callable[[Path], None]) -> None:
    """Turn a folder of slices into a checkpoint, after all ranks have written.

    Args:
        folder: Unfinished checkpoint folder.
        reports: What `write_slices` returned on each rank.
        state: State of the run; JSON.
        write_config: Writes the run's configuration to a path.

    Raises:
        InputError: Files are missing, or do not cover all parameters.
    """
    files, layout = {}, {}
    for report in reports:
        files |= report["files"]
        layout |= report["layout"]
    for name, recorded in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != recorded["bytes"]:
            raise InputError(f"{folder / name} was written but is not there whole: all ranks must share that folder")
    write_config(folder / CONFIG_FILE)
    flush(folder / CONFIG_FILE)
    added = [CONFIG_FILE]
    if len(reports) > 1:
        _write_json(folder / LAYOUT_FILE, layout)
        added.append(LAYOUT_FILE)
        slices = open_slices(folder)
        for name in slices.names:
            slices.check(name, slices.whole(name).box)
    files |= {name: fingerprint(folder / name) for name in added}
    _write_json(folder / STATE_FILE, state | {"files": files}, indent=1)
    flush(folder)


def _write_json(path: Path, content: dict, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent))
    flush(path)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename the new checkpoint. An older one of the same step is moved aside first, and removed last."""
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    temporary.rename(final)
    flush(final.parent)
    for old in final.parent.glob(_STEP_PREFIX + "*" + _REPLACED):
        shutil.rmtree(old)


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first. One that is being replaced comes before its replacement."""
    return sorted(
        (path for path in folder.glob(_STEP_PREFIX + "*") if path.is_dir()),
        key=lambda path: (path.name.removesuffix(_REPLACED), not path.name.endswith(_REPLACED)),
    )


def _recorded_files(checkpoint: Path) -> dict[str, dict[str, int]] | None:
    try:
        return dict(read_state(checkpoint)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damage(checkpoint: Path, holder: Holder) -> str | None:
    """Return what is wrong with a checkpoint, or None. Each rank checks a share of the files."""
    files = _recorded_files(checkpoint)
    if files is None:
        return f"{STATE_FILE} is missing or unreadable"
    for name, recorded in list(files.items())[holder.rank :: holder.plan.world_size]:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        found = fingerprint(path)
        if found != recorded:
            return (
                f"{name} {_mix_up(checkpoint, found) or 'was changed after it was written'} "
                f"({found['bytes']} bytes, {recorded['bytes']} expected)"
            )
    return None


def _mix_up(checkpoint: Path, found: dict[str, int]) -> str | None:
    """Say which other file of this run's checkpoints has the size and CRC-32 that were found."""
    for other in [checkpoint, *checkpoints_of(checkpoint.parent)]:
        for name, recorded in (_recorded_files(other) or {}).items():
            if recorded == found:
                return f"is {name} of {other.name}"
    return None


def newest(folder: Path, holder: Holder = ALONE) -> Path | None:
    """Return the newest whole checkpoint of a folder. Damaged ones are reported on stderr and skipped.

    All ranks must call it.
    """
    for checkpoint in reversed(checkpoints_of(folder)):
        damage = _damage(checkpoint, holder)
        if holder.all_true(damage is None):
            return checkpoint
        print(
            f"warning: checkpoint {checkpoint} is damaged: {damage or 'another rank reports it'}; using the one before",
            file=sys.stderr,
        )
    return None


def read_state(checkpoint: Path) -> dict:
    """Read the state that `save` was given, and "step"."""
    return read_json(checkpoint / STATE_FILE)


def find_folder(path: str | Path, holder: Holder = ALONE) -> Path | None:
    """Find a checkpoint folder: `path` itself, or the newest whole one of a run's folder. All ranks must call it.

    Returns:
        The folder, or None if there is no checkpoint.

    Raises:
        InputError: The checkpoint, or every checkpoint of the run, is damaged.
    """
    path = Path(path)
    if (path / STATE_FILE).is_file():
        damage = _damage(path, holder)
        if not holder.all_true(damage is None):
            raise InputError(f"checkpoint {path} is damaged: {damage or 'another rank reports it'}; use another step")
        return path
    for folder in (path / "checkpoint", path):
        if folder.is_dir() and checkpoints_of(folder):
            checkpoint = newest(folder, holder)
            if checkpoint is None:
                raise InputError(f"every checkpoint in {folder} is damaged")
            return checkpoint
    return None


def find(path: str | Path, name: str = "", holder: Holder = ALONE) -> Path:
    """Find the weights at a path that a user gave, for `load`. All ranks must call it.

    Args:
        path: A .ckpt file, a checkpoint folder, or a run's folder with its newest whole checkpoint.
        name: First characters of the file's name, if `path` is a folder of other .ckpt files.
        holder: This rank.

    Returns:
        A .ckpt file, or the checkpoint folder of a run of several ranks.

    Raises:
        InputError: There are no weights, or more than one file of them.
    """
    path = Path(path)
    if path.is_file():
        return _whole_file(path)
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path}: give a .ckpt file, a checkpoint folder or a run's output folder")
    checkpoint = find_folder(path, holder)
    if checkpoint is not None:
        return checkpoint if (checkpoint / LAYOUT_FILE).is_file() else checkpoint / MODEL_FILE
    files = sorted(file for file in path.glob("*.ckpt") if file.name.startswith(name))
    if len(files) == 1:
        return _whole_file(files[0])
    found = ", ".join(file.name for file in files[:4]) or "none"
    raise InputError(f"{path} should hold one .ckpt file whose name begins with '{name}'; found {found}")


def _whole_file(path: Path) -> Path:
    """Check a file that a user named against the state of the checkpoint that it belongs to, if there is one.

    Raises:
        InputError: It is only a part of the checkpoint, or was changed after it was written.
    """
    real = path.resolve()  # a link may lead into a checkpoint
    if (real.parent / LAYOUT_FILE).is_file():
        raise InputError(f"{path} is only one rank's part of a checkpoint; give the folder {real.parent}")
    recorded = (_recorded_files(real.parent) or {}).get(real.name)
    if recorded and fingerprint(real) != recorded:
        raise InputError(
            f"{path} was changed after it was written, as {real.parent / STATE_FILE} says; use another step"
        )
    return path


def config_beside(weights: Path) -> Path | None:
    """Return the configuration file beside weights (a file, a link or a checkpoint folder), or None."""
    folders = (weights,) if weights.is_dir() else (weights.resolve().parent, weights.parent)
    return next((folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).is_file()), None)


def open_slices(source: Path) -> SavedSlices:
    """Open a .ckpt file or a checkpoint folder to read any part of its parameters.

    Raises:
        InputError: A file can't be read.
    """
    if source.is_file():
        return SavedSlices(source, {source: None})
    layout_file = source / LAYOUT_FILE
    if layout_file.is_file():
        layout = {
            source / file: {name: Slice.from_json(value) for name, value in slices.items()}
            for file, slices in read_json(layout_file).items()
        }
        return SavedSlices(source, layout)
    return SavedSlices(
        source, {file: None for file in (source / MODEL_FILE, source / OPTIMIZER_FILE) if file.is_file()}
    )


def load(source: Path, parameters: Iterable[Parameter], holder: Holder = ALONE) -> None:
    """Load parameters and moments by name from a .ckpt file or a checkpoint folder. All change, or none.

    Older parameter names are accepted. Moments that are not in `parameters` are ignored. Other parameters that the
    model does not have are counted on stderr.

    Args:
        source: A .ckpt file or checkpoint folder, written by any number of ranks.
        parameters: This rank's slices, which are set.
        holder: This rank, and which slices it holds.

    Raises:
        InputError: A file can't be read, or a parameter is missing or has another shape.
    """
    parameters = list(parameters)
    slices = open_slices(source)
    known = set(holder.shapes or (parameter.name for parameter in parameters))
    stored = [name for name in slices.names if not name.startswith(_NOT_THE_MODELS)]
    boxes = {}
    for parameter in parameters:
        name = parameter.name
        shape, boxes[name] = holder.place(name, tuple(parameter.shape))
        if name not in slices.names:
            raise InputError(
                f"{source} has no parameter '{name}'; it holds {len(stored)}, "
                f"the model {len(known)}: does it have another size (--mode, --model.num_layers)?"
            )
        if slices.whole(name).shape != shape:
            raise InputError(
                f"{source}: '{name}' is {slices.whole(name).shape}, the model's is {shape}: "
                "the checkpoint has another configuration (--mode, --model.*)"
            )
        slices.check(name, boxes[name])
    for parameter in parameters:
        value = slices.read(parameter.name, boxes[parameter.name])
        parameter.set_data(Tensor(value.astype(ckpt_file.DTYPES[str(parameter.dtype)], copy=False)))
    unused = [name for name in stored if name not in known]
    if unused:
        print(
            f"warning: {source} holds {len(unused)} parameters that the model does not have, such as '{unused[0]}'",
            file=sys.stderr,
        )
