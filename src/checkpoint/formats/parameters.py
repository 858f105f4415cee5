"""What all formats speak of: a checkpoint's parameters by their official names, and the files of another one."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.nn.parameters import POSITION_TABLE, WORD_TABLE, block_number, layer_prefixes
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.sharding import parameter_shapes

FLOATS = [ckpt_file.DTYPES[name] for name in ("Float32", "Float16", "BFloat16")]


@dataclass(frozen=True)
class Kind:
    """Shape and dtype of a parameter."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype.name}"


@dataclass(frozen=True)
class Options:
    """What a user may say of either format; each takes what concerns it.

    Args:
        checkpoint_name: How the names of the files to read begin.
        strategy: MindSpore's strategy file of the files to read, or a folder of them.
        vocab_size: Rows of the word embedding that are words.
        parts: Tensor-parallel parts to write.
        shard_bytes: Most bytes of a file of the formats that are cut into shards.
        bin_files: Write PyTorch's pytorch_model.bin for Hugging Face, not safetensors.
    """

    checkpoint_name: str = ""
    strategy: str = ""
    vocab_size: int | None = None
    parts: int = 1
    shard_bytes: int = 1 << 29
    bin_files: bool = False


@dataclass
class Source:
    """A checkpoint of some format.

    Args:
        path: What the user named, for messages.
        kinds: All of its parameters, by their official names.
        read: Gives all of a parameter. It may be a view of the file.
        files: That it is read from.
        left_out: What else they hold: moments, counters, buffers, padding.
        settings: What the format itself says of the network, such as num_heads.
    """

    path: Path
    kinds: dict[str, Kind]
    read: Callable[[str], np.ndarray]
    files: list[Path]
    left_out: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A tensor of a file to be written.

    Args:
        name: In that file.
        parameter: The official name of what it is made of.
        kind: As written.
        change: Makes it from all of the parameter: a slice, the transpose; keeps the dtype.
    """

    name: str
    parameter: str
    kind: Kind
    change: Callable[[np.ndarray], np.ndarray] = np.asarray


@dataclass(frozen=True)
class File:
    """A file to be written.

    Args:
        name: Its path within the output.
        pieces: What it holds, in this order.
        write: Writes (path, pieces, their values); an iterator, so that values need not all be in memory.
        resume: What a file of that format, cut short anywhere, already holds: how many pieces, and their bytes. None
            where such a file is begun again.
    """

    name: str
    pieces: list[Piece]
    write: Callable[[Path, list[Piece], Iterator[np.ndarray]], None]
    resume: Callable[[Path, list[Piece]], tuple[int, int]] | None = None


@dataclass(frozen=True)
class Target:
    """The files of a checkpoint to be written, and its small texts by name."""

    files: list[File]
    texts: dict[str, str] = field(default_factory=dict)


def model_of(source: Source, num_heads: int | None = None) -> PanguAlphaConfig:
    """The network that a checkpoint's parameters are of, which they must be exactly.

    Args:
        num_heads: Where the format doesn't say.

    Raises:
        InputError: A parameter is missing, too many or of another shape than the others say.
    """
    kinds = source.kinds
    needed = [WORD_TABLE, POSITION_TABLE, "backbone.layernorm.gamma"]
    missing = [name for name in needed if name not in kinds]
    if missing:
        raise InputError(f"{source.path} has no parameter '{missing[0]}': it is no whole PanGu-α checkpoint")
    flat = [name for name in (WORD_TABLE, POSITION_TABLE) if len(kinds[name].shape) != 2]
    if flat:
        raise InputError(f"{source.path}: '{flat[0]}' is {kinds[flat[0]].shape}, but a table has two axes")
    layers = max((block_number(name) or 0 for name in kinds), default=0) + 2
    sizes = {
        "vocab_size": kinds[WORD_TABLE].shape[0],
        "hidden_size": kinds["backbone.layernorm.gamma"].shape[0],
        "seq_length": kinds[POSITION_TABLE].shape[0],
        "num_layers": layers,
    } | _feed_forward(kinds, layers)
    heads = num_heads or source.settings.get("num_heads") or 1
    known = {name: value for name, value in source.settings.items() if name in PanguAlphaConfig.__dataclass_fields__}
    settings: dict[str, Any] = known | sizes | {"num_heads": heads}
    model = PanguAlphaConfig(**settings)
    _check_shapes(source, parameter_shapes(model))
    return model


def _feed_forward(kinds: Mapping[str, Kind], layers: int) -> dict[str, int]:
    """The sizes of feed-forward layers, from their matrices."""
    prefixes = layer_prefixes(layers)
    dense = [kinds[name].shape for prefix in prefixes if (name := f"{prefix}output.mapping.weight") in kinds]
    experts = {
        number: kinds[name].shape
        for number, prefix in enumerate(prefixes)
        if (name := f"{prefix}output.ffn.mapping.weight") in kinds
    }
    widths = [shape[-1] for shape in [*experts.values(), *dense]]
    sizes = {"ffn_hidden_size": widths[0]} if widths else {}
    if experts:
        first = min(experts)
        sizes |= {"num_experts": experts[first][0], "expert_interval": first + 1}
    return sizes


def _check_shapes(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in shapes if name not in source.kinds]
    if missing:
        raise InputError(f"{source.path} has no parameter '{missing[0]}' ({len(missing)} of {len(shapes)} are missing)")
    unknown = [name for name in source.kinds if name not in shapes]
    if unknown:
        raise InputError(
            f"{source.path} has {len(unknown)} parameters that a PanGu-α of its size has not, such as '{unknown[0]}'"
        )
    for name, shape in shapes.items():
        kind = source.kinds[name]
        if kind.shape != shape:
            raise InputError(
                f"{source.path}: '{name}' is {kind.shape}, but by the other parameters' sizes {shape}: "
                "files of different models are mixed"
            )
        if kind.dtype not in FLOATS:
            raise InputError(
                f"{source.path}: '{name}' is of type {kind.dtype.name}; weights are "
                f"{', '.join(dtype.name for dtype in FLOATS)}"
            )


def numbered(files: Iterable[Path], pattern: str) -> dict[int, Path]:
    """Files whose names have a number where the pattern's group is, by it, in order."""
    found = {int(match[1]): file for file in files if (match := re.fullmatch(pattern, file.name))}
    return dict(sorted(found.items()))


def read_json(path: Path) -> dict:
    """An object of a JSON file.

    Raises:
        InputError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content
