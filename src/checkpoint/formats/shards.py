"""Checkpoints in the files of the Hugging Face Hub: one file, or several (shards) with an index."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

from src.checkpoint import ckpt_file
from src.checkpoint.formats.parameters import File, Kind, Piece, Target, read_object
from src.checkpoint.limits import LONGEST_NAME, MOST_AXES, MOST_TENSORS
from src.common.checks import check_seekable
from src.common.errors import InputError

SAFETENSORS, BIN = "safetensors", "bin"
VOCABULARY = "vocabulary_md5"  # key in config.json
STEMS = {SAFETENSORS: "model", BIN: "pytorch_model"}
MOST_HEADER_BYTES = 1 << 23  # of a .safetensors file; a tensor takes about 100
_DTYPES = {
    "F32": "Float32",
    "F16": "Float16",
    "BF16": "BFloat16",
    "F64": "Float64",
    "I64": "Int64",
    "I32": "Int32",
    "I16": "Int16",
    "I8": "Int8",
    "U8": "UInt8",
    "BOOL": "Bool",
}


def find(path: Path, endings: list[str]) -> Mapping[Path, set[str] | None]:
    """Find the files of a checkpoint.

    Args:
        path: A file or a folder.
        endings: Kinds of files to look for, SAFETENSORS or BIN, the preferred one first.

    Returns:
        The tensors that the index lists for each file; None for a file without an index.

    Raises:
        InputError: There are no files, several without an index, or a file of the index is missing.
    """
    if path.is_file():
        return {path: None}
    for ending in endings:
        files = sorted(path.glob(f"*.{ending}"))
        indices = sorted(path.glob(f"*.{ending}.index.json"))
        if indices:
            listing = read_object(indices[0]).get("weight_map")
            if not isinstance(listing, dict) or not listing:
                raise InputError(f"{indices[0]} has no weight_map, or an empty one: fetch or copy it again")
            listed: dict[Path, set[str]] = {}
            for name, file in listing.items():
                if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
                    raise InputError(f"{indices[0]} names {json.dumps(file)[:200]} for '{name}', outside its folder")
                listed.setdefault(path / file, set()).add(name)
            missing = [file for file in listed if not file.is_file()]
            if missing:
                raise InputError(f"{missing[0]} is missing; {indices[0].name} names {len(listed)} files")
            return listed
        weights = [file for file in files if file.name.startswith(STEMS[ending])]  # not training_args.bin and such
        if len(weights or files) == 1:
            return {(weights or files)[0]: None}
        if files:
            raise InputError(
                f"{path} has {len(files)} .{ending} files but no *.{ending}.index.json, which lists the tensors of each"
            )
    raise InputError(f"{path} has no {' or '.join('.' + ending for ending in endings)} file")


def checked_names(files: Mapping[Path, set[str] | None], kinds: dict[Path, dict[str, Kind]]) -> dict[str, Path]:
    """Return the file of each tensor.

    Args:
        files: What `find` returned.
        kinds: Tensors in each file.

    Raises:
        InputError: A file lacks a tensor of the index, or two files have the same tensor.
    """
    where: dict[str, Path] = {}
    for file, named in files.items():
        lacking = sorted((named or set()) - set(kinds[file]))
        if lacking:
            raise InputError(
                f"{file} has no '{lacking[0]}', which the index says it has: does it belong to another checkpoint?"
            )
        for name in kinds[file]:
            if name in where:
                raise InputError(f"both {where[name].name} and {file} have '{name}': they belong to two checkpoints")
            where[name] = file
    return where


def safetensors_kinds(file: Path) -> dict[str, Kind]:
    """Return shape and dtype of each tensor in a .safetensors file.

    Raises:
        InputError: The file is damaged, has too many tensors, or has a dtype that weights do not have.
    """
    try:
        _check_header(file)
        with safe_open(file, "np") as opened:
            if len(opened.keys()) > MOST_TENSORS:
                raise _too_many(file, f"it has more than {MOST_TENSORS:,} tensors")
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            if any(len(name) > LONGEST_NAME or len(part.get_shape()) > MOST_AXES for name, part in slices.items()):
                raise _too_many(file, f"a name or a shape is longer than {LONGEST_NAME} characters or {MOST_AXES} axes")
            return {
                name: Kind(tuple(part.get_shape()), ckpt_file.DTYPES[_DTYPES[part.get_dtype()]])
                for name, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} is not a whole .safetensors file ({file.stat().st_size} bytes; {error}): fetch or copy it again"
        ) from error
    except KeyError as error:
        raise InputError(f"{file} has tensors of type {error}, which weights do not have") from error


def _check_header(file: Path) -> None:
    """Raise InputError for a pipe, or a long header, before the library waits for it, or makes objects of it."""
    check_seekable(file)
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if MOST_HEADER_BYTES < header < file.stat().st_size:
        raise _too_many(file, f"its header has more than {MOST_HEADER_BYTES >> 20} MiB")


def _too_many(file: Path, reason: str) -> InputError:
    return InputError(f"{file} is damaged, or is no checkpoint of a model: {reason}")


def read_safetensors(file: Path, name: str, kind: Kind) -> np.ndarray:
    """Read a tensor of a .safetensors file."""
    with safe_open(file, "np") as opened:
        return opened.get_tensor(name).view(f"u{kind.dtype.itemsize}").view(kind.dtype)


def write_safetensors(path: Path, pieces: list[Piece], values: Iterator[np.ndarray]) -> None:
    """Write a .safetensors file. All its values are in memory at once."""
    arrays = {piece.name: np.ascontiguousarray(value) for piece, value in zip(pieces, values, strict=True)}
    specs = {
        name: TensorSpec(
            dtype=array.dtype.name,
            shape=array.shape,
            data_ptr=array.view(f"u{array.itemsize}").ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }
    try:
        serialize_file(specs, path, metadata={"format": "pt"})
    except SafetensorError as error:
        system_error = re.search(r"\(os error (\d+)\)", str(error))
        if system_error is None:
            raise
        number = int(system_error[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def target(
    pieces: list[Piece],
    shard_bytes: int,
    ending: str,
    write: Callable[[Path, list[Piece], Iterator[np.ndarray]], None],
    config: dict,
) -> Target:
    """Distribute pieces over files, with an index if there are several, and config.json.

    Args:
        pieces: All tensors.
        shard_bytes: Largest size of a file. A larger tensor gets a file of its own.
        ending: SAFETENSORS or BIN.
        write: Writes a file; see `File`.
        config: Content of config.json.
    """
    shards: list[list[Piece]] = [[]]
    room = shard_bytes
    for piece in pieces:
        if shards[-1] and piece.kind.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(piece)
        room -= piece.kind.nbytes
    stem, count = STEMS[ending], len(shards)
    names = [
        f"{stem}-{number:05d}-of-{count:05d}.{ending}" if count > 1 else f"{stem}.{ending}"
        for number in range(1, count + 1)
    ]
    texts = {"config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    if count > 1:
        weights = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        total = sum(piece.kind.nbytes for piece in pieces)
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        texts[f"{stem}.{ending}.index.json"] = json.dumps(index, indent=2) + "\n"
    return Target([File(name, shard, write) for name, shard in zip(names, shards, strict=True)], texts)
