"""Dropout whose mask is a hash of (key, place, element), not a stream of random numbers.

The same key gives the same mask wherever and whenever it is computed: a resumed run goes on with the masks that it
would have had, and a model split over devices drops what the whole one drops.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


# The odd multipliers and shifts of MurmurHash3's finaliser: every input bit reaches every output bit.
_GOLDEN_RATIO = _signed(0x9E3779B1)
_ROUNDS = ((16, _signed(0x85EBCA6B)), (13, _signed(0xC2B2AE35)))
_LAST_SHIFT = 16
_LOW_31_BITS = 0x7FFFFFFF


def dropout_keys(seed: int, step: int, micro_step: int, rows: int) -> np.ndarray:
    """The keys (rows,) int32 of a micro-batch's rows, for the run's seed and the optimizer step."""
    return np.random.default_rng([seed, step, micro_step]).integers(-(2**31), 2**31, rows, dtype=np.int32)


class Dropout(nn.Cell):
    """Zero each element with probability `rate`, scale the others by 1 / (1 - rate).

    Attributes:
        site: Its number among the dropouts of the model.
        part: Which of the equal parts of each row x is, where rows are spread over devices.

    Inputs:
        x (B * n elements, any shape whose leading axis is a multiple of B), key (B,) int32, or None for no dropout.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.site = 0
        self.part = 0
        self.threshold = int(rate * 2**31)
        self.range = ops.Range()
        self.reshape = ops.Reshape()
        self.add = ops.Add()
        self.mul = ops.Mul()
        self.xor = ops.BitwiseXor()
        self.bit_and = ops.BitwiseAnd()
        self.shift = ops.RightShift()
        self.greater_equal = ops.GreaterEqual()
        self.cast = ops.Cast()

    def construct(self, x: Tensor, key: Tensor | None) -> Tensor:
        if key is None or self.rate == 0:
            return x
        batch = key.shape[0]
        row_size = x.size // batch
        begin = self.part * row_size
        element = self.cast(self.reshape(self.range(begin, begin + row_size, 1), (1, -1)), ms.int32)
        row = self._mix(self.add(key, self.site))
        word = self.add(self.reshape(row, (batch, 1)), self.mul(element, _GOLDEN_RATIO))
        kept = self.greater_equal(self.bit_and(self._mix(word), _int32(_LOW_31_BITS)), self.threshold)
        scale = self.mul(self.cast(kept, x.dtype), 1.0 / (1.0 - self.rate))
        return self.mul(x, self.reshape(scale, x.shape))

    def _mix(self, word: Tensor) -> Tensor:
        for shift, multiplier in _ROUNDS:
            word = self.mul(self.xor(word, self.shift(word, _int32(shift))), multiplier)
        return self.xor(word, self.shift(word, _int32(_LAST_SHIFT)))


def _int32(value: int) -> Tensor:
    return Tensor(value, ms.int32)


def number_sites(model: nn.Cell) -> None:
    """Give every Dropout of a model its own number, so that no two drop the same elements."""
    dropouts = [cell for _, cell in model.cells_and_names() if isinstance(cell, Dropout)]
    for site, dropout in enumerate(dropouts):
        dropout.site = site
