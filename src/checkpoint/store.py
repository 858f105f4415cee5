"""A checkpoint is a folder `step_00000100`: model.ckpt, optimizer.ckpt, state.json, config.yaml.

It is written under a temporary name and renamed, so that a folder of that name is whole; state.json holds the size and
CRC-32 of each file, so that one which was damaged later is noticed.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import mindspore as ms
from mindspore import Parameter, Tensor

from src.errors import InputError

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, CONFIG_FILE = "model.ckpt", "optimizer.ckpt", "state.json", "config.yaml"
_STEP_PREFIX, _TEMPORARY_PREFIX = "step_", ".unfinished_"
_OPTIMIZER_PREFIXES = ("adam_m.", "adam_v.", "accumulated.")


def save(folder: Path, step: int, model: Iterable[Parameter], optimizer: Iterable[Parameter], state: dict,
         write_config: Callable[[Path], None], keep: int) -> Path:
    """Write checkpoint `step` into `folder` and remove all but the newest `keep`.

    Args:
        state: What else a run needs to go on; JSON.
        write_config: Writes the run's configuration to a path.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(_TEMPORARY_PREFIX + "*"):
        shutil.rmtree(leftover)
    temporary = folder / f"{_TEMPORARY_PREFIX}{step}"
    temporary.mkdir()
    for name, parameters in ((MODEL_FILE, model), (OPTIMIZER_FILE, optimizer)):
        ms.save_checkpoint([{"name": p.name, "data": p} for p in parameters], str(temporary / name))
    write_config(temporary / CONFIG_FILE)
    files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
    (temporary / STATE_FILE).write_text(json.dumps(state | {"step": step, "files": files}, indent=1))
    for path in temporary.iterdir():
        _flush(path)
    final = folder / f"{_STEP_PREFIX}{step:08d}"
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(folder)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, int]:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def _steps(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob(_STEP_PREFIX + "*") if path.is_dir())


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((checkpoint / STATE_FILE).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE_FILE} is missing or unreadable"
    for name, recorded in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        found = _fingerprint(path)
        if found != recorded:
            return f"{name} was changed after it was written ({found['bytes']} bytes, {recorded['bytes']} expected)"
    return None


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder; damaged ones are reported on stderr and passed over."""
    for checkpoint in reversed(_steps(folder)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        print(f"warning: checkpoint {checkpoint} is damaged: {damage}; using the one before", file=sys.stderr)
    return None


def read_state(checkpoint: Path) -> dict:
    """What `save` was given as `state`, and "step"."""
    return json.loads((checkpoint / STATE_FILE).read_text())


def find(path: str | Path, name: str = "") -> Path:
    """The file of weights that a user means.

    Args:
        path: A .ckpt file, a checkpoint folder, or a run's folder (its newest whole checkpoint is taken).
        name: How the file's name begins, where `path` is a folder of .ckpt files.

    Raises:
        InputError: There is none, or more than one.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"no checkpoint at {path}: give a .ckpt file, a checkpoint folder or a run's output folder")
    if (path / STATE_FILE).is_file():
        damage = _damage(path)
        if damage:
            raise InputError(f"checkpoint {path} is damaged: {damage}; take another step's")
        return path / MODEL_FILE
    for folder in (path / "checkpoint", path):
        if folder.is_dir() and _steps(folder):
            checkpoint = newest(folder)
            if checkpoint is None:
                raise InputError(f"every checkpoint in {folder} is damaged")
            return checkpoint / MODEL_FILE
    files = sorted(file for file in path.glob("*.ckpt") if file.name.startswith(name))
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in files[:4]) or "none"
    raise InputError(f"{path} should hold one .ckpt file whose name begins with '{name}'; found {found}")


def config_beside(weights: Path) -> Path | None:
    """The configuration saved with a file of weights."""
    path = weights.parent / CONFIG_FILE
    return path if path.is_file() else None


def load(file: Path, parameters: Iterable[Parameter]) -> None:
    """Set parameters, by name, from a .ckpt file. Nothing is changed unless all fit.

    The older names without `embedding.` are accepted. Optimizer state in the file is passed over; other parameters
    that the model doesn't have are counted on stderr.

    Raises:
        InputError: The file can't be read, or a parameter is missing or has another shape.
    """
    parameters = list(parameters)
    stored = _read(file)
    stored = {_official_name(name): value for name, value in stored.items()}
    for parameter in parameters:
        if parameter.name not in stored:
            raise InputError(f"{file} has no parameter '{parameter.name}'; it holds {len(stored)}, "
                             f"the model {len(parameters)}: is it of another size (--mode, --model.num_layers)?")
        shape = tuple(stored[parameter.name].shape)
        if shape != tuple(parameter.shape):
            raise InputError(f"{file}: '{parameter.name}' is {shape}, the model's is {tuple(parameter.shape)}: "
                             "the checkpoint is of another configuration (--mode, --model.*)")
    for parameter in parameters:
        value = stored.pop(parameter.name)
        parameter.set_data(value if value.dtype == parameter.dtype else
                           Tensor(value.asnumpy().astype(ms.dtype_to_nptype(parameter.dtype))))
    unused = [name for name in stored if not name.startswith(_OPTIMIZER_PREFIXES)]
    if unused:
        print(f"warning: {file} holds {len(unused)} parameters that the model has not, such as '{unused[0]}'",
              file=sys.stderr)


def _official_name(name: str) -> str:
    for table in ("word_embedding", "position_embedding"):
        name = name.replace(f"backbone.{table}.", f"backbone.embedding.{table}.")
    return name


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return ms.load_checkpoint(str(file))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise InputError(f"{file} is not a whole MindSpore checkpoint ({os.path.getsize(file)} bytes): fetch or "
                         "copy it again") from error

