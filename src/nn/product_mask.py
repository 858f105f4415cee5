"""The dropout mask of accelerators: products of small integers, which every chip computes alike.

The hash of src/nn/dropout.py shifts bits and lets products overflow. On Ascend, RightShift runs on the processors
beside the AI cores (AICPU); a division in its place may be computed in float32, which has 24 bits; and what an
overflowing product of int32 gives is not documented. Here no product reaches 2^31. Four operators touch each element
(xor, product, and, comparison), where the hash has thirteen.

A row's key is split like a path in a tree: into one for each site, then for each head, token and block of columns.
A node is a word of 16 bits and an odd factor of 15. With a fixed number c for each child, the child's word is the low
half of (c xor word) * factor. An element is a last child: it is kept if its low half reaches the threshold.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from src.nn.dropout import Dropout, hashed

_WORD = 0xFFFF
_EVEN = 0x7FFE  # plus 1, this is a factor
_ROOT_FACTOR = 0x79B1  # the low half of the hash's first multiplier
_COLUMNS = 1 << 12  # most columns of a block


class ProductMask(nn.Cell):
    """Mask of a dropout by products of small integers. It is called like `src.nn.dropout.HashMask`.

    The probability of 0 is the rate, rounded down to a multiple of 2^-16. The last axis is cut into blocks of at most
    4,096 columns. Attributes whose names begin with `last_` compute elements, the others nodes of the tree.

    Returns:
        bool in the shape of the dropout's input, or with the last axis in blocks; true where an element is kept.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.threshold = int(rate * (_WORD + 1))
        self.reshape = ops.Reshape()
        self.floor_div = ops.FloorDiv()
        self.xor = self.last_xor = ops.BitwiseXor()
        self.mul = self.last_mul = ops.Mul()
        self.bit_and = self.last_and = ops.BitwiseAnd()
        self.add = ops.Add()
        self.last_greater_equal = ops.GreaterEqual()

    def construct(self, shape: tuple[int, ...], key: Tensor, site: int, part: int) -> Tensor:
        *outer, columns = shape[1:] if len(shape) > 2 else (shape[0] // key.shape[0], shape[1])
        width = _width(columns)
        word, factor = self._root(self.reshape(key, (-1, 1)))
        word, factor = self._children(word, factor, site, 1)
        begin = part * outer[0]
        for size in outer:
            word, factor = self._children(word, factor, begin, size)
            begin = 0
        if width < columns:
            word, factor = self._children(word, factor, 0, columns // width)
        nodes = (*shape[:-2], -1, 1)
        word, factor = self.reshape(word, nodes), self.reshape(factor, nodes)
        product = self.last_mul(self.last_xor(word, _column_numbers(width)), factor)
        return self.last_greater_equal(self.last_and(product, _WORD), self.threshold)

    def _root(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words and factors of keys (B, 1). The middle of a product is the word, so that no bit of a key
        reaches high bits alone, which would never reach lower ones.
        """
        high = self.bit_and(self._shifted(self.bit_and(key, ~_WORD), 16), _WORD)
        product = self.mul(self.xor(self.bit_and(key, _WORD), high), _ROOT_FACTOR)
        word = self._shifted(self.bit_and(product, _WORD << 8), 8)
        return word, self.add(self.bit_and(high, _EVEN), 1)

    def _shifted(self, x: Tensor, bits: int) -> Tensor:
        """Return x / 2^bits. Of x, only 16 bits from that place on may be set, so that float32 holds both numbers."""
        return self.floor_div(x, 1 << bits)

    def _children(self, word: Tensor, factor: Tensor, begin: int, number: int) -> tuple[Tensor, Tensor]:
        """Return words and factors (N * number, 1) of the children `begin`, `begin` + 1, ... of nodes (N, 1)."""
        words = self.mul(self.xor(word, _child_numbers(begin, number, 0)), factor)
        factors = self.mul(self.xor(word, _child_numbers(begin, number, 1)), factor)
        words, factors = self.bit_and(words, _WORD), self.add(self.bit_and(factors, _EVEN), 1)
        return self.reshape(words, (-1, 1)), self.reshape(factors, (-1, 1))


@ops.constexpr
def _width(columns: int) -> int:
    return max(width for width in range(1, min(columns, _COLUMNS) + 1) if columns % width == 0)


@ops.constexpr
def _child_numbers(begin: int, number: int, kind: int) -> Tensor:
    """Return the numbers (1, number) of children, of 16 bits: kind 0 for words, kind 1 for factors."""
    words = hashed(np.arange(begin, begin + number, dtype=np.uint32) * 2 + kind)
    return Tensor((words & _WORD).astype(np.int32).reshape(1, -1))


@ops.constexpr
def _column_numbers(width: int) -> Tensor:
    """Return the numbers (width,) of columns.

    Two columns must differ in the low 12 bits, or their words would differ by a fixed amount in all rows. Bit 12 is 0,
    or the words of some pairs would be x and -x.
    """
    low = np.argsort(hashed(np.arange(_COLUMNS, dtype=np.uint32)), kind="stable")[:width]
    high = hashed(low.astype(np.uint32) + _COLUMNS) & 7
    return Tensor((low | high.astype(np.int64) << 13).astype(np.int32))


def use_product_masks(model: nn.Cell) -> None:
    """Give every Dropout of a model the mask of accelerators."""
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, Dropout):
            cell.mask = ProductMask(cell.rate)
