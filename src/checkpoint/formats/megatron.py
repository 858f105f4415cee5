"""Megatron-LM files of the PyTorch port: iter_0001000/mp_rank_00/model_optim_rng.pt, one for each tensor-parallel part.

The port's num-layers is one less than ours, because it does not count the query layer.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from src.checkpoint.formats import torch_file
from src.checkpoint.formats.hf import turned
from src.checkpoint.formats.mindformers import check_parts, piece_of
from src.checkpoint.formats.names import MEGATRON, Name
from src.checkpoint.formats.parameters import File, Kind, Options, Piece, Source, Target, numbered
from src.common.errors import InputError
from src.common.reading import read_text
from src.nn.parameters import WORD_TABLE
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.sharding import tensor_axis

TRACKER = "latest_checkpointed_iteration.txt"
FILE = "model_optim_rng.pt"
ITERATION = 1000  # the port accepts any; without optimizer states it loads with --finetune
_MODEL = ("model", "language_model")
_TRANSFORMER = "transformer"


def open_source(path: Path, options: Options) -> Source:
    """Open a folder with latest_checkpointed_iteration.txt, a folder with mp_rank_00 and so on, or a .pt file.

    Raises:
        InputError: `path` is none of these, a part is missing or damaged, or parts of two checkpoints are mixed.
    """
    files = _files(path)
    parts = [torch_file.tensors(file, *_MODEL) for file in files]
    for file, part in zip(files, parts, strict=True):
        differing = sorted(set(part) ^ set(parts[0]))
        if differing:
            raise InputError(f"only one of {file} and {files[0]} has '{differing[0]}': they belong to two checkpoints")
    blocks = {match[1] for name in parts[0] if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    names = {name.official: name for name in MEGATRON.names(len(blocks) + 1)}
    known = {name.foreign for name in names.values()}
    unknown = sorted(set(parts[0]) - known)
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} tensors that the port's PanGu-α does not have, such as '{unknown[0]}'"
        )
    kinds = {official: _whole(name, files, parts) for official, name in names.items() if name.foreign in parts[0]}
    settings = _settings(files[0])
    left_out = _cut_padding(path, kinds, options.vocab_size or settings.pop("vocab_size", None))

    def read(official: str) -> np.ndarray:
        name = names[official]
        tensors = [part[name.foreign] for part in parts]
        axis = _axis(name)
        pieces = [tensor.read() for tensor in (tensors if axis is not None else tensors[:1])]
        values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)
        values = values.T if name.transposed else values
        return values[: kinds[official].shape[0]]

    return Source(path, kinds, read, files, left_out, settings)


def _files(path: Path) -> list[Path]:
    """Find the files of the parts, in order."""
    if path.is_file():
        return [path]
    folder, tracker = path, path / TRACKER
    if tracker.is_file():
        iteration = read_text(tracker).strip()
        if not re.fullmatch(r"[0-9]{1,18}|release", iteration):
            raise InputError(f"{tracker} is {iteration[:50]!r}; it must hold the number of an iteration, or 'release'")
        folder = path / (f"iter_{int(iteration):07d}" if iteration != "release" else iteration)
    parts = numbered(folder.glob("mp_rank_*"), r"mp_rank_(\d+)") if folder.is_dir() else {}
    if not parts:
        raise InputError(f"{path} has no mp_rank_00 folder: give the one that {TRACKER} is in, or a .pt file")
    missing = [number for number in range(max(parts) + 1) if not (folder / f"mp_rank_{number:02d}" / FILE).is_file()]
    if missing:
        raise InputError(f"{folder}/mp_rank_{missing[0]:02d}/{FILE} is missing, but there is one for part {max(parts)}")
    return [part / FILE for part in parts.values()]


def _axis(name: Name) -> int | None:
    """Return the axis along which the parts cut a tensor of the port, or None."""
    axis = tensor_axis(name.official)
    return axis if axis is None or not name.transposed else 1 - axis


def _whole(name: Name, files: list[Path], parts: list[dict[str, torch_file.Tensor]]) -> Kind:
    """Return the kind of the whole parameter, and check that all parts agree."""
    tensors = [part[name.foreign] for part in parts]
    kind = tensors[0].kind
    for file, tensor in zip(files, tensors, strict=True):
        if tensor.kind != kind:
            raise InputError(
                f"{file}: '{name.foreign}' is {tensor.kind}, but {kind} in {files[0]}: they belong to two checkpoints"
            )
    axis = _axis(name)
    if axis is not None:
        shape = list(kind.shape)
        shape[axis] *= len(parts)
        kind = replace(kind, shape=tuple(shape))
    elif any(tensor.read().tobytes() != tensors[0].read().tobytes() for tensor in tensors[1:]):
        raise InputError(
            f"'{name.foreign}' differs between the parts in {files[0].parent.parent}, but each has all of "
            "it: they belong to two checkpoints"
        )
    return turned(kind, name.transposed)


def _settings(file: Path) -> dict[str, int]:
    """Read the settings that `target` adds to a file and the port ignores."""
    tree = torch_file.load(file)
    noted = {name: tree.get(name) for name in ("num_heads", "vocab_size")}
    return {name: value for name, value in noted.items() if isinstance(value, int) and 1 <= value < 1 << 31}


def _cut_padding(path: Path, kinds: dict[str, Kind], vocab_size: int | None) -> list[str]:
    """Leave out the padding rows of the word embedding, and say how many they are."""
    table = kinds.get(WORD_TABLE)
    if table is None or vocab_size is None or vocab_size == table.shape[0]:
        return []
    if vocab_size > table.shape[0]:
        raise InputError(f"{path} has {table.shape[0]} words, fewer than the vocabulary of {vocab_size}")
    kinds[WORD_TABLE] = replace(table, shape=(vocab_size, table.shape[1]))
    return [f"{table.shape[0] - vocab_size} rows that pad the vocabulary"]


def target(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> Target:
    """List a file for each of options.parts tensor-parallel parts. The words are padded to a multiple of the parts.

    Raises:
        InputError: The network has experts, or cannot be cut into this number of parts.
    """
    if model.num_experts:
        raise InputError("the network has experts (MoE), for which the megatron format has no place")
    padded = -(-model.vocab_size // options.parts) * options.parts
    check_parts(replace(model, vocab_size=padded), options.parts)
    noted = {"iteration": ITERATION, "num_heads": model.num_heads, "vocab_size": model.vocab_size}
    names = MEGATRON.names(model.num_layers)  # the order in `_nested` is the same
    files = []
    for part in range(options.parts):
        pieces = [_piece(name, kinds[name.official], part, options.parts, padded) for name in names]
        tree = {"model": {_MODEL[1]: _nested(pieces)}} | noted
        files.append(File(f"iter_{ITERATION:07d}/mp_rank_{part:02d}/{FILE}", pieces, partial(_write, tree)))
    return Target(files, {TRACKER: f"{ITERATION}"})


def _piece(name: Name, kind: Kind, part: int, parts: int, padded: int) -> Piece:
    whole = replace(kind, shape=(padded, kind.shape[1])) if name.official == WORD_TABLE else kind
    cut = piece_of(name.official, whole, part, parts)

    def change(values: np.ndarray) -> np.ndarray:
        if whole.shape != values.shape:
            values = np.concatenate([values, np.zeros((padded - len(values), values.shape[1]), values.dtype)])
        values = cut.change(values)
        return values.T if name.transposed else values

    return Piece(name.foreign, name.official, turned(cut.kind, name.transposed), change)


def _nested(pieces: list[Piece]) -> dict:
    """Make the port's dictionaries: flat names for the transformer, a dictionary for each cell of the rest."""
    tree: dict = {}
    for piece in pieces:
        *keys, last = piece.name.split(".", 1) if piece.name.startswith(_TRANSFORMER) else piece.name.split(".")
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = piece.kind
    return tree


def _write(tree: dict, path: Path, pieces: list[Piece], values: Iterator[np.ndarray]) -> None:
    torch_file.write(path, tree, values)
