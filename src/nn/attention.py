"""Attention between the projections: softmax(q k^T + bias) v.

A parallel plan or a device may put other cells in the place of these two. They go together: what the first one makes of
the attention mask is what the second one takes.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.nn.dropout import Dropout, key_after
from src.nn.operators import MaskedSoftmax, SwapAxes
from src.pangu_alpha_config import PanguAlphaConfig

MASKED_SCORE = -10000.0  # finite in float16, too
SHARED = -1  # number of the beginning of a row that all documents of the row attend to


class AttentionBias(nn.Cell):
    """What attention may see -> what is added to the scores, (B, 1, Q, K).

    Inputs:
        visible: One of these two.
            A mask (B, Q, K), any number type: 1 where the query of axis 1 may attend to the key of axis 2, else 0.
            Documents (B, S) int32: the number of each token's document. A token attends to itself and to the tokens
            before it that have its number, or the number SHARED.
    """

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.softmax_dtype = getattr(ms, config.softmax_compute_dtype)
        self.expand_dims = ops.ExpandDims()
        self.sub = ops.Sub()
        self.mul = ops.Mul()
        self.cast = ops.Cast()

    def construct(self, visible: Tensor) -> Tensor:
        mask = mask_of_documents(visible) if len(visible.shape) == 2 else visible
        allowed = self.expand_dims(self.cast(mask, self.softmax_dtype), 1)
        return self.mul(self.sub(1.0, allowed), MASKED_SCORE)


def mask_of_documents(documents: Tensor) -> Tensor:
    """Return the mask (B, S, S) bool of documents (B, S)."""
    rows, length = documents.shape
    place = ops.range(0, length, 1)
    earlier = ops.reshape(place, (1, length)) <= ops.reshape(place, (length, 1))  # (S, S)
    keys = ops.reshape(documents, (rows, 1, length))
    visible = ops.logical_or(keys == SHARED, keys == ops.reshape(documents, (rows, length, 1)))
    return ops.logical_and(visible, earlier)


class CoreAttention(nn.Cell):
    """Attention of all heads that a rank holds.

    Inputs:
        q, k, v (B * S, H): Queries, keys and values, as the projections return them.
        bias (B, 1, S, S): From AttentionBias.
        dropout_key: See src/nn/dropout.py.
        cache: The KV cache of a runtime: a function that takes the new keys and values (B, A, S, d) and returns the
            keys and values to attend to.

    Returns:
        The weighted sums of the values, (B * S, H).
    """

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.head_size = config.head_size
        self.softmax_dtype = getattr(ms, config.softmax_compute_dtype)
        self.reshape = ops.Reshape()
        self.swap_scaled = SwapAxes(config.head_size**-0.25)
        self.swap = SwapAxes()
        self.swap_back = SwapAxes()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.softmax = MaskedSoftmax()
        self.dropout = Dropout(config.attention_dropout)
        self.weighted_sum = ops.BatchMatMul()
        self.cast = ops.Cast()

    def construct(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        dropout_key: Tensor | None = None,
        cache: Callable | None = None,
    ) -> Tensor:
        batch = bias.shape[0]
        q = self.swap_scaled(self._heads(q, batch))  # (B, A, S, d)
        k = self.swap_scaled(self._heads(k, batch))
        v = self.swap(self._heads(v, batch))
        if cache is not None:
            k, v = cache(k, v)
        scores = self.cast(self.scores(q, k), self.softmax_dtype)  # (B, A, S, S)
        weights = self.cast(self.softmax(scores, bias), v.dtype)
        weights = self.dropout(weights, key_after(weights, dropout_key))
        mixed = self.swap_back(self.weighted_sum(weights, v))  # (B, S, A, d)
        return self.reshape(mixed, (-1, self.num_heads * self.head_size))

    def _heads(self, x: Tensor, batch: int) -> Tensor:
        return self.reshape(x, (batch, -1, self.num_heads, self.head_size))
