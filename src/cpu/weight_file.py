"""What lies where in a model's weight file: a function of the network and its format alone.

The file is the tensors one after the other, each at a multiple of a page, so that it can be mapped into memory. The
graph, the writer and the lookup of words all go by this one list.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from src.common.errors import InputError
from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE, layer_prefixes
from src.pangu_alpha_config import PanguAlphaConfig

WEIGHTS_FILE = "weights.bin"
VOCABULARY_FOLDER = "tokenizer"  # in a model's folder, where its vocabulary is known
PAGE = 4096
TABLE = "words"  # the word embedding (V, H), which is the head as well
BLOCK_SIZES = (16, 32, 64, 128, 256)
BITS = (4, 8, 32)


@dataclass(frozen=True)
class Format:
    """How matrices are stored.

    Args:
        bits: Of a weight: 32 is float32 itself.
        block_size: Weights along a row that share a scale.
        asymmetric: Each block has a zero point of its own.
        table_bits: Of a weight of the word embedding, which is read twice a token: as input and as head.
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
    """A tensor in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Matrix:
    """A matrix (rows, columns) that multiplies from the right, transposed: y (rows) = matrix x (columns).

    Args:
        parameters: Official names of what it is made of, one below the other.
        transposed: They are stored (in, out) in a checkpoint.
    """

    rows: int
    columns: int
    parameters: tuple[str, ...]
    transposed: bool
    bits: int


def _linear_maps(config: PanguAlphaConfig) -> dict[str, tuple[int, int, list[str], bool]]:
    """Rows, columns, official names (but for `weight` or `bias`) and whether they are stored transposed, of all linear
    maps by the engine's names. Queries, keys and values of a block are one map; the query layer's queries come from
    elsewhere and have one of their own."""
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
    """All matrices by the engine's names."""
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
    """All that stays float32, by the engine's names: the shape, and the official names of what it is made of."""
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
    """The tensors that a matrix is stored as: ONNX Runtime's MatMulNBits reads them as they are."""
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
    """Every tensor of the file, in its order.

    Raises:
        InputError: The engine has no such network.
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
    """The tensors of a file's bytes, in their place."""
    return {
        name: data[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        for name, tensor in stored.items()
    }


def total_bytes(stored: dict[str, Stored]) -> int:
    """Bytes of the whole file."""
    last = list(stored.values())[-1]
    return last.offset + last.nbytes
