"""MindFormers' PanguAlpha: official names in one .ckpt file, or in folders rank_0, rank_1, ... with a strategy file."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from src.checkpoint.formats import mindspore
from src.checkpoint.formats.parameters import File, Kind, Options, Piece, Source, Target, numbered
from src.checkpoint.formats.strategy import open_slices, tensor_parallel_strategy
from src.common.errors import InputError
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.sharding import Box, tensor_axis

NAME = "pangualpha"
STRATEGY = "strategy/ckpt_strategy_rank_0.ckpt"


def open_source(path: Path, options: Options) -> Source:
    """Open a .ckpt file, or a folder of rank folders with one file each.

    Raises:
        InputError: `path` is neither, is damaged, or needs a strategy file.
    """
    folders = numbered(path.glob("rank_*"), r"rank_(\d+)") if path.is_dir() else {}
    files = {rank: _only_file(folder, options.checkpoint_name) for rank, folder in folders.items()}
    strategy = options.strategy or (path / STRATEGY if (path / STRATEGY).is_file() else "")
    if len(files) == 1 and not strategy:
        return mindspore.open_source(files[0] if 0 in files else next(iter(files.values())), options)
    if not files:
        return mindspore.open_source(path, options)
    if not strategy:
        raise InputError(
            f"{path} has {len(files)} rank folders: give --strategy, the strategy file or folder of the "
            "run that wrote them"
        )
    return open_slices(path, files, Path(strategy))


def _only_file(folder: Path, prefix: str) -> Path:
    files = sorted(folder.glob(f"{prefix}*.ckpt"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:3]) or "none"
        raise InputError(
            f"{folder} should have one file {prefix}*.ckpt; found {found} (--checkpoint_name says how its name begins)"
        )
    return files[0]


def target(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> Target:
    """List a rank folder for each tensor-parallel part, and a strategy file if there are several parts.

    Raises:
        InputError: The network cannot be cut into this number of parts.
    """
    check_parts(model, options.parts)
    files = [
        File(
            f"rank_{part}/{NAME}.ckpt",
            [piece_of(name, kind, part, options.parts) for name, kind in kinds.items()],
            mindspore.write,
            mindspore.whole_pieces,
        )
        for part in range(options.parts)
    ]
    if options.parts > 1:
        content = tensor_parallel_strategy(
            list(kinds), {name: len(kind.shape) for name, kind in kinds.items()}, options.parts
        )
        files.append(File(STRATEGY, [], partial(_write_strategy, content)))
    return Target(files)


def _write_strategy(content: bytes, path: Path, pieces: list[Piece], values: Iterator[np.ndarray]) -> None:
    path.write_bytes(content)


def check_parts(model: PanguAlphaConfig, parts: int) -> None:
    """Check that a network can be cut into a number of tensor-parallel parts.

    Raises:
        InputError: It cannot.
    """
    for name in ("num_heads", "ffn_hidden_size", "vocab_size", "hidden_size"):
        size = getattr(model, name)
        if size % parts:
            raise InputError(f"--parts {parts} does not divide the network's {name} {size}")


def piece_of(name: str, kind: Kind, part: int, parts: int) -> Piece:
    """Return a tensor-parallel part of a parameter, or all of a parameter that is not cut."""
    axis = tensor_axis(name)
    if axis is None or parts == 1:
        return Piece(name, name, kind)
    box = Box.whole(kind.shape).part(axis, part, parts)
    return Piece(name, name, replace(kind, shape=box.shape), lambda values: values[box.index])
