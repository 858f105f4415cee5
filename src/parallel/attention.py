"""Ascend's fused attention, FlashAttentionScore, in the place of the plain one (parallel.attention flash).

It never writes the scores of all pairs of tokens to memory. Where no weight of attention is dropped, and documents are
few enough, the host sends their ends instead of a mask, and the operator leaves out what lies between documents (layout
TND). Otherwise the host sends the number of each token's document, and the mask is made on the device.

The operators have no kernel on a CPU. The tests hold this wiring against the golden numbers, with an emulation of the
documented formula in their place (tests/support/flash_attention.py).
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from src.nn.attention import CoreAttention
from src.nn.dropout import Dropout, key_after
from src.pangu_alpha import PanguAlphaModel

TRIANGLE = 2048  # sides of the mask that the operator wants for a causal attention of any length
MOST_TOKENS = 2**31 - 1  # "all", for the operator's window of tokens before a query


def fuse_attention(model: PanguAlphaModel, by_ends: bool, data: int = 1, tensor: int = 1) -> None:
    """Replace the plain attention of a model, for training, by the fused operator.

    Args:
        model: A whole model with its shard strategies, or a rank's part of one with its collectives.
        by_ends: The host sends the ends of documents, else their numbers.
        data, tensor: Parts into which a strategy cuts rows and heads, in semi-automatic parallel; else 1 and 1.
    """
    config, backbone = model.config, model.backbone
    backbone.attention_bias = DocumentEnds(data) if by_ends else DiscardMask(config.seq_length, data)
    make = DocumentAttention if by_ends else MaskedAttention
    for layer in model.layers:
        layer.attention.core = make(layer.attention.core, config.seq_length, data, tensor)


class DocumentEnds(nn.Cell):
    """Ends of documents (B, D) int64, counted from the first token of the rank's rows -> the same."""

    def __init__(self, data: int):
        super().__init__()
        self.cast = ops.Cast().shard(((data, 1),))

    def construct(self, ends: Tensor) -> Tensor:
        return self.cast(ends, ms.int64)


class DiscardMask(nn.Cell):
    """Numbers of the tokens' documents (B, S) int32 -> (B, 1, S, S) uint8, 1 where attention may not go."""

    def __init__(self, length: int, data: int):
        super().__init__()
        self.later = Tensor(np.triu(np.ones((1, 1, length, length), np.bool_), 1))
        self.reshape = ops.Reshape()
        self.not_equal = ops.NotEqual().shard(((data, 1, 1, 1), (data, 1, 1, 1)))
        self.logical_or = ops.LogicalOr().shard(((data, 1, 1, 1), (1, 1, 1, 1)))
        self.cast = ops.Cast().shard(((data, 1, 1, 1),))

    def construct(self, documents: Tensor) -> Tensor:
        batch, length = documents.shape
        queries = self.reshape(documents, (batch, 1, length, 1))
        keys = self.reshape(documents, (batch, 1, 1, length))
        return self.cast(self.logical_or(self.not_equal(queries, keys), self.later), ms.uint8)


class FusedAttention(nn.Cell):
    """Base of the two cells in the place of CoreAttention. Its inputs are those of CoreAttention, without a cache.

    Args:
        core: The cell that is replaced. Its dropout keeps its number, so that the masks are the same.
        length: Tokens of a row.
        data, tensor: See fuse_attention.
    """

    def __init__(self, core: CoreAttention, length: int, data: int, tensor: int):
        super().__init__()
        self.num_heads, self.head_size, self.length = core.num_heads, core.head_size, length
        self.dropout = core.dropout
        self.reshape = ops.Reshape()


class DocumentAttention(FusedAttention):
    """Each document attends to itself alone, in the layout TND. No mask is made, and no weight is dropped."""

    def __init__(self, core: CoreAttention, length: int, data: int, tensor: int):
        super().__init__(core, length, data, tensor)
        heads = (data, tensor, 1)
        self.triangle = Tensor(np.triu(np.ones((TRIANGLE, TRIANGLE), np.uint8), 1))
        self.flash = FlashAttentionScore(
            head_num=self.num_heads,
            scale_value=self.head_size**-0.5,
            pre_tokens=MOST_TOKENS,
            next_tokens=0,
            input_layout="TND",
            sparse_mode=3,
        )
        self.flash.shard((heads, heads, heads, (1, 1), (data,), (data,)))

    def construct(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ends: Tensor,
        dropout_key: Tensor | None = None,
        cache: Callable | None = None,
    ) -> Tensor:
        ends = self.reshape(ends, (-1,))
        q, k, v = self._heads(q), self._heads(k), self._heads(v)  # (B * S, A, d)
        _, _, _, mixed = self.flash(q, k, v, None, None, None, self.triangle, None, ends, ends)
        return self.reshape(mixed, (-1, self.num_heads * self.head_size))

    def _heads(self, x: Tensor) -> Tensor:
        return self.reshape(x, (-1, self.num_heads, self.head_size))


class MaskedAttention(FusedAttention):
    """Attention with a mask, in the layout BSH. Weights are dropped as the plain attention drops them."""

    def __init__(self, core: CoreAttention, length: int, data: int, tensor: int):
        super().__init__(core, length, data, tensor)
        rows, mask = (data, 1, tensor), (data, 1, 1, 1)
        self.flash, self.dropping_flash = (
            FlashAttentionScore(
                head_num=self.num_heads, keep_prob=keep, scale_value=self.head_size**-0.5, input_layout="BSH"
            )
            for keep in (1.0, 1.0 - self.dropout.rate)
        )
        self.flash.shard((rows, rows, rows, mask))
        self.dropping_flash.shard((rows, rows, rows, (data, tensor, 1, 1), mask))
        self.kept_bits = KeptBits(self.dropout, self.num_heads, length, data, tensor)

    def construct(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        dropout_key: Tensor | None = None,
        cache: Callable | None = None,
    ) -> Tensor:
        q, k, v = self._rows(q), self._rows(k), self._rows(v)  # (B, S, H)
        if dropout_key is None:
            _, _, _, mixed = self.flash(q, k, v, None, None, None, mask, None, None, None)
        else:
            kept = self.kept_bits(key_after(v, dropout_key))
            _, _, _, mixed = self.dropping_flash(q, k, v, None, kept, None, mask, None, None, None)
        return self.reshape(mixed, (-1, self.num_heads * self.head_size))

    def _rows(self, x: Tensor) -> Tensor:
        return self.reshape(x, (-1, self.length, self.num_heads * self.head_size))


class KeptBits(nn.Cell):
    """Which weights of attention are kept: dropout_key (B,) -> (B, A, S, S / 8) uint8.

    Bit i of a byte, counted from the lowest one, belongs to key 8 * byte + i. They are the weights that `dropout` keeps
    in the plain attention.
    """

    def __init__(self, dropout: Dropout, num_heads: int, length: int, data: int, tensor: int):
        super().__init__()
        self.dropout = dropout
        self.shape = (num_heads, length, length)
        self.ones = ops.Ones()
        self.reshape = ops.Reshape()
        self.values = Tensor([2.0**bit for bit in range(8)], ms.float16)
        self.greater = ops.Greater().shard(((data, tensor, 1, 1), ()))
        self.cast = ops.Cast().shard(((data, tensor, 1, 1),))
        self.mul = ops.Mul().shard(((data, tensor, 1, 1, 1), (1,)))
        self.sum = ops.ReduceSum().shard(((data, tensor, 1, 1, 1),))

    def construct(self, dropout_key: Tensor) -> Tensor:
        heads, queries, keys = self.shape
        whole = (dropout_key.shape[0], heads, queries, keys)
        kept = self.greater(self.dropout(self.ones(whole, ms.float16), dropout_key), 0.0)
        bits = self.reshape(self.cast(kept, ms.float16), (dropout_key.shape[0], heads, queries, -1, 8))
        return self.cast(self.sum(self.mul(bits, self.values), -1), ms.uint8)
