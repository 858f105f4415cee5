"""The layout of a model's weight file. It depends only on the network and its format.

The file holds the tensors one after the other. Each starts at a multiple of a page, so that the file can be mapped into
memory. The writer, both networks and the word embedding use the list of `layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from src.common.errors import InputError
from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE, layer_prefixes
from src.pangu_alpha_config import PanguAlphaConfig

WEIGHTS_FILE = "weights.bin"
VOCABULARY_FOLDER = "tokenizer"  # folder of the vocabulary in a model's folder; missing if it was not given
PAGE = 4096
TABLE = "words"  # name of the word embedding (V, H), which is also the head
BLOCK_SIZES = (16, 32, 64, 128, 256)
BITS = (4, 8, 32)


@dataclass(frozen=True)
class Format:
    """Format in which matrices are stored.

    Args:
        bits: Bits of a weight; 32 means float32.
        block_size: Number of weights along a row that share a scale.
        asymmetric: Whether each block has its own zero point.
        table_bits: Bits of a weight of the word embedding.

    Raises:
        InputError: There is no such format.
    """

    bits: int
    block_size: int = 128
    asymmetric: bool = False
    table_bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.table_bits not in BITS:
            raise InputError(f"weights of {self.bits} bits: there are {', '.join(map(str, BITS))}")
        if self.block_size not in BLOCK_SIZES:
            raise InputError(f"blocks of {self.block_size} weights: there are {', '.join(map(str, BLOCK_SIZES))}")


@dataclass(frozen=True)
class Stored:
    """Type, shape and offset in bytes of a tensor in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Matrix:
    """A matrix W (rows, columns) of a linear map y = W x.

    Args:
        rows: Width of y.
        columns: Width of x.
        parameters: Official names of the parameters that W consists of, one below the other.
        transposed: Whether a checkpoint stores them as (in, out).
        bits: Bits of a weight.
    """

    rows: int
    columns: int
    parameters: tuple[str, ...]
    transposed: bool
    bits: int


def _linear_maps(config: PanguAlphaConfig) -> dict[str, tuple[int, int, list[str], bool]]:
    """Return all linear maps by the engine's names.

    Each has rows, columns, official names without `weight` or `bias`, and whether a checkpoint stores them transposed.
    Queries, keys and values of a block are one map. The query layer computes its queries from another input, so they
    are a map of their own.
    """
    hidden, inner = config.hidden_size, config.ffn_hidden_size
    found = {}
    for number, prefix in enumerate(layer_prefixes(config.num_layers)):
        dense = [f"{prefix}attention.dense{part}." for part in (1, 2, 3)]
        parts = {"qkv": dense} if number < config.num_layers - 1 else {"q": dense[:1], "kv": dense[1:]}
        for name, parameters in parts.items():
            found[f"{number}.{name}"] = (len(parameters) * hidden, hidden, parameters, False)
        found[f"{number}.projection"] = (hidden, hidden, [f"{prefix}attention.projection."], True)
        found[f"{number}.mapping"] = (inner, hidden, [f"{prefix}output.mapping."], True)
        found[f"{number}.output"] = (hidden, inner, [f"{prefix}output.projection."], True)
    return found


def matrices(config: PanguAlphaConfig, format: Format) -> dict[str, Matrix]:
    """Return all matrices by the engine's names."""
    found = {
        TABLE: Matrix(
            config.vocab_size, config.hidden_size, (WORD_TABLE,), False, 32 if format.bits == 32 else format.table_bits
        )
    }
    for name, (rows, columns, parameters, transposed) in _linear_maps(config).items():
        found[name] = Matrix(
            rows, columns, tuple(f"{parameter}weight" for parameter in parameters), transposed, format.bits
        )
    return found


def vectors(config: PanguAlphaConfig) -> dict[str, tuple[tuple[int, ...], list[str]]]:
    """Return what stays float32 by the engine's names: shapes, and official names of the parameters it consists of."""
    hidden, table = config.hidden_size, (config.seq_length, config.hidden_size)
    found = {
        "positions": (table, [POSITION_TABLE]),
        "queries": (table, [QUERY_TABLE]),
        "gamma": ((hidden,), ["backbone.layernorm.gamma"]),
        "beta": ((hidden,), ["backbone.layernorm.beta"]),
    }
    for number, prefix in enumerate(layer_prefixes(config.num_layers)):
        found |= {
            f"{number}.{kind}{norm}": ((hidden,), [f"{prefix}layernorm{norm}.{kind}"])
            for norm in (1, 2)
            for kind in ("gamma", "beta")
        }
    for name, (rows, _, parameters, _) in _linear_maps(config).items():
        found[f"{name}.bias"] = ((rows,), [f"{parameter}bias" for parameter in parameters])
    return found


def parts_of(name: str, matrix: Matrix, format: Format) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return types and shapes of the tensors that store a matrix, as ONNX Runtime's MatMulNBits reads them."""
    if matrix.bits == 32:
        shape = (matrix.rows, matrix.columns) if name == TABLE else (matrix.columns, matrix.rows)
        return {name: (np.dtype(np.float32), shape)}
    blocks = -(-matrix.columns // format.block_size)
    parts = {
        f"{name}.weights": (np.dtype(np.uint8), (matrix.rows, blocks, format.block_size * matrix.bits // 8)),
        f"{name}.scales": (np.dtype(np.float32), (matrix.rows, blocks)),
    }
    if format.asymmetric:
        parts[f"{name}.zeros"] = (np.dtype(np.uint8), (matrix.rows, -(-blocks * matrix.bits // 8)))
    return parts


def layout(config: PanguAlphaConfig, format: Format) -> dict[str, Stored]:
    """Return every tensor of the file, in the order of the file.

    Raises:
        InputError: The engine cannot run such a network.
    """
    if config.num_experts:
        raise InputError("a model with experts (model.num_experts) can't be run by the engine for CPUs; predict.py can")
    if config.head_size % 8:
        raise InputError(
            f"heads of {config.head_size} numbers can't be run by the engine for CPUs, whose attention "
            "takes multiples of 8; predict.py can"
        )
    parts = {
        name: part
        for key, matrix in matrices(config, format).items()
        for name, part in parts_of(key, matrix, format).items()
    }
    parts |= {name: (np.dtype(np.float32), shape) for name, (shape, _) in vectors(config).items()}
    found, offset = {}, 0
    for name, (dtype, shape) in parts.items():
        found[name] = Stored(dtype, shape, offset)
        offset += -(-found[name].nbytes // PAGE) * PAGE
    return found


def tensors(data: np.ndarray, stored: dict[str, Stored]) -> dict[str, np.ndarray]:
    """Return views of the tensors in the bytes of a file."""
    return {
        name: data[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        for name, tensor in stored.items()
    }


def total_bytes(stored: dict[str, Stored]) -> int:
    """Return the size of the whole file in bytes."""
    last = list(stored.values())[-1]
    return last.offset + last.nbytes
