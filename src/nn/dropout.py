"""Dropout with a mask that is a hash of key, dropout layer and element, instead of a stream of random numbers.

The same key always gives the same mask. So a resumed run continues with the masks of a run that never stopped, and a
model that is split over devices drops the same elements as the whole model.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.nn.operators import after


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


# Multipliers and shifts of MurmurHash3's finaliser, which mixes every input bit into every output bit.
_GOLDEN_RATIO = _signed(0x9E3779B1)
_ROUNDS = ((16, _signed(0x85EBCA6B)), (13, _signed(0xC2B2AE35)))
_LAST_SHIFT = 16
_LOW_31_BITS = 0x7FFFFFFF
_LOW_32_BITS = 0xFFFFFFFF


def dropout_keys(seed: int, step: int, micro_step: int, rows: int) -> np.ndarray:
    """Return a key for each row of a micro-batch, int32 (rows,)."""
    return np.random.default_rng([seed, step, micro_step]).integers(-(2**31), 2**31, rows, dtype=np.int32)


def hashed(words: np.ndarray) -> np.ndarray:
    """Return uint32 words with their bits mixed, as the cells below mix them."""
    words = words * np.uint32(_GOLDEN_RATIO & _LOW_32_BITS)
    for shift, multiplier in _ROUNDS:
        words = (words ^ words >> shift) * np.uint32(multiplier & _LOW_32_BITS)
    return words ^ words >> _LAST_SHIFT


class Hash(nn.Cell):
    """Base of the cells that mix the bits of int32 words."""

    def __init__(self) -> None:
        super().__init__()
        self.mul = ops.Mul()
        self.xor = ops.BitwiseXor()
        self.shift = ops.RightShift()

    def _mix(self, word: Tensor) -> Tensor:
        for shift, multiplier in _ROUNDS:
            word = self.mul(self.xor(word, self.shift(word, _int32(shift))), multiplier)
        return self.xor(word, self.shift(word, _int32(_LAST_SHIFT)))


class DropoutKeys(Hash):
    """Keys of a step's rows, computed in the graph, for training loops that have no `dropout_keys` of the host.

    Args:
        seed: Seed of the run.
        rank: Number of this data-parallel rank. All ranks have as many rows, and a row has the key of its place among
            the rows of all of them.

    Inputs:
        step: int32 scalar, number of the step.
        ids (B, ...): Gives the number of rows.

    Returns:
        int32 (B,).
    """

    def __init__(self, seed: int, rank: int = 0):
        super().__init__()
        self.seed, self.rank = seed & _LOW_31_BITS, rank
        self.range = ops.Range()

    def construct(self, step: Tensor, ids: Tensor) -> Tensor:
        rows = ids.shape[0]
        row = ops.cast(self.range(self.rank * rows, (self.rank + 1) * rows, 1), ms.int32)
        word = self._mix(ops.cast(step, ms.int32) * _GOLDEN_RATIO + self.seed)
        return self._mix(word + row * _GOLDEN_RATIO)


class HashMask(Hash):
    """Mask of a dropout: a hash of the row's key, the site and the element's place in its row.

    Args:
        rate: Probability of 0.

    Inputs:
        shape: Shape of the dropout's input: B rows, in any shape.
        key (B,) int32: Key of each row.
        site, part: See Dropout.

    Returns:
        bool (B, elements of a row), true where an element is kept.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.threshold = int(rate * 2**31)
        self.range = ops.Range()
        self.reshape = ops.Reshape()
        self.add = ops.Add()
        self.bit_and = ops.BitwiseAnd()
        self.greater_equal = ops.GreaterEqual()
        self.cast = ops.Cast()

    def construct(self, shape: tuple[int, ...], key: Tensor, site: int, part: int) -> Tensor:
        batch, row_size = key.shape[0], 1
        for size in shape:
            row_size *= size
        row_size //= batch
        begin = part * row_size
        element = self.cast(self.reshape(self.range(begin, begin + row_size, 1), (1, -1)), ms.int32)
        row = self._mix(self.add(key, site))
        word = self.add(self.reshape(row, (batch, 1)), self.mul(element, _GOLDEN_RATIO))
        return self.greater_equal(self.bit_and(self._mix(word), _int32(_LOW_31_BITS)), self.threshold)


class Dropout(nn.Cell):
    """Sets each element to 0 with probability `rate`, and scales the others by 1 / (1 - rate).

    Attributes:
        mask: Chooses the elements. A device may have another mask; see src/nn/product_mask.py.
        site: Number of this dropout in the model. See `number_sites`.
        part: Number of the part of each row that x holds, if rows are split evenly over devices. Else 0.

    Inputs:
        x: Elements of B rows, in any shape. The first axis must be a multiple of B.
        key (B,) int32: Key of each row. None means no dropout.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.site = 0
        self.part = 0
        self.mask = HashMask(rate)
        self.mul = ops.Mul()
        self.reshape = ops.Reshape()
        self.cast = ops.Cast()

    def construct(self, x: Tensor, key: Tensor | None) -> Tensor:
        if key is None or self.rate == 0:
            return x
        kept = self.mask(x.shape, key, self.site, self.part)
        scale = self.mul(self.cast(kept, x.dtype), 1.0 / (1.0 - self.rate))
        return self.mul(x, self.reshape(scale, x.shape))


def key_after(x: Tensor, key: Tensor | None) -> Tensor | None:
    """Return the key for a mask that is made after x, or a graph may make the masks of all layers at its beginning.

    What is dropped must not be x if it is a sum over tensor-parallel ranks: the recomputed mask would need it again.
    """
    return key if key is None else after(x, key)


def _int32(value: int) -> Tensor:
    return Tensor(value, ms.int32)


def number_sites(model: nn.Cell) -> None:
    """Give every Dropout of a model its own number, so that no two use the same mask."""
    dropouts = [cell for _, cell in model.cells_and_names() if isinstance(cell, Dropout)]
    for site, dropout in enumerate(dropouts):
        dropout.site = site
