"""Types that all formats share: a source with its parameters by official name, and a target with its files."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoint import ckpt_file
from src.common.checks import check_seekable
from src.common.errors import InputError
from src.common.reading import read_json
from src.common.settings import GenerationConfig
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
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype.name}"


@dataclass(frozen=True)
class Options:
    """Options of all formats. A format ignores the options of the others.

    Args:
        checkpoint_name: First characters of the names of the files to read.
        strategy: MindSpore's strategy file of the files to read, or a folder of strategy files.
        vocab_size: Number of words; further rows of a word embedding are padding.
        parts: Number of tensor-parallel parts to write.
        shard_bytes: Largest size of a file, for formats that split a checkpoint into shards.
        bin_files: Write PyTorch's pytorch_model.bin files instead of .safetensors files.
        vocabulary_md5: MD5 of the model's vocabulary, for formats that store it; empty if it is unknown.
        vocabulary: File vocab.model, for formats that store it; None if it is unknown.
        vocabulary_size: Number of its pieces.
        end_token: Id after which generation stops, for formats that store it.
    """

    checkpoint_name: str = ""
    strategy: str = ""
    vocab_size: int | None = None
    parts: int = 1
    shard_bytes: int = 1 << 29
    bin_files: bool = False
    vocabulary_md5: str = ""
    vocabulary: Path | None = None
    vocabulary_size: int = 0
    end_token: int = GenerationConfig.end_token


@dataclass
class Source:
    """A checkpoint to read, in any format.

    Args:
        path: Path that the user gave, for error messages.
        kinds: Shape and dtype of every parameter, by official name.
        read: Returns a whole parameter by official name. The array can be a view of the file.
        files: Files of the checkpoint.
        left_out: Names of what else the files hold: moments, counters, buffers, padding.
        settings: Settings of the network that the format stores, such as num_heads.
        vocabulary_md5: md5 of the vocabulary that the model was trained with; empty if the format does not store it.
        vocabulary: File or folder of the vocabulary that the format names or has; None if there is none.
        end_token: Id after which generation stops.
    """

    path: Path
    kinds: dict[str, Kind]
    read: Callable[[str], np.ndarray]
    files: list[Path]
    left_out: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary_md5: str = ""
    vocabulary: Path | None = None
    end_token: int = GenerationConfig.end_token


@dataclass(frozen=True)
class Piece:
    """A tensor of a file to write.

    Args:
        name: Name in the file.
        parameter: Official name of the parameter that it comes from.
        kind: Shape and dtype in the file.
        change: Makes the tensor from the whole parameter, such as a slice or the transpose; keeps the dtype.
    """

    name: str
    parameter: str
    kind: Kind
    change: Callable[[np.ndarray], np.ndarray] = np.asarray


@dataclass(frozen=True)
class File:
    """A file to write.

    Args:
        name: Path within the output.
        pieces: Tensors of the file, in order.
        write: Writes (path, pieces, values). The values are an iterator, so that one at a time is in memory.
        resume: Counts the whole pieces in an incomplete file, and their bytes. None: such a file is written anew.
    """

    name: str
    pieces: list[Piece]
    write: Callable[[Path, list[Piece], Iterator[np.ndarray]], None]
    resume: Callable[[Path, list[Piece]], tuple[int, int]] | None = None


@dataclass(frozen=True)
class Target:
    """A checkpoint to write: its files, and by name its small text files and the files that it copies."""

    files: list[File]
    texts: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)


def model_of(source: Source, num_heads: int | None = None) -> PanguAlphaConfig:
    """Derive the network from the shapes of a checkpoint's parameters.

    Args:
        source: The checkpoint.
        num_heads: Number of attention heads, which shapes do not show; None: the format's settings, or else 1.

    Raises:
        InputError: A parameter is missing, unknown, or has a shape or dtype that does not fit the others.
    """
    kinds = source.kinds
    needed = [WORD_TABLE, POSITION_TABLE, "backbone.layernorm.gamma"]
    missing = [name for name in needed if name not in kinds]
    if missing:
        raise InputError(f"{source.path} has no parameter '{missing[0]}': it is not a whole PanGu-α checkpoint")
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
    """Derive the sizes of the feed-forward layers and experts from their matrices."""
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
            f"{source.path} has {len(unknown)} parameters that its PanGu-α does not have, such as '{unknown[0]}'"
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
    """Return the files whose whole name matches a pattern, by the number in its group, in order."""
    found = {int(match[1]): file for file in files if (match := re.fullmatch(pattern, file.name))}
    return dict(sorted(found.items()))


def read_object(path: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        InputError: The file can't be read, or holds something else.
    """
    check_seekable(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content
