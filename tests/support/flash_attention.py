"""Ascend's FlashAttentionScore on a CPU, by the formula of its documentation. It has the operator's arguments.

What the project does not use is refused, so that a test cannot pass by an argument that is ignored here.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

LOWEST = -1e9


class FlashAttentionScore(nn.Cell):
    def __init__(
        self,
        head_num,
        keep_prob=1.0,
        scale_value=1.0,
        pre_tokens=2147483647,
        next_tokens=2147483647,
        inner_precise=0,
        input_layout="BSH",
        sparse_mode=0,
    ):
        super().__init__(auto_prefix=False)
        assert pre_tokens == 2147483647 and inner_precise == 0
        assert (input_layout, sparse_mode, next_tokens) in (("BSH", 0, pre_tokens), ("TND", 3, 0))
        self.head_num, self.keep_prob, self.scale_value, self.layout = head_num, keep_prob, scale_value, input_layout
        self.bits = Tensor([1 << bit for bit in range(8)], ms.int32)

    def shard(self, *_):
        return self

    def construct(self, query, key, value, shift, drop_mask, padding, attn_mask, prefix, query_ends, key_ends):
        assert shift is None and padding is None and prefix is None and (drop_mask is None) == (self.keep_prob == 1.0)
        if self.layout == "TND":
            assert attn_mask.shape == (2048, 2048) and drop_mask is None
            return None, None, None, self.of_documents(query, key, value, query_ends)
        batch, length, hidden = query.shape
        assert attn_mask.shape == (batch, 1, length, length) and query_ends is None and key_ends is None
        q, k, v = (x.reshape(batch, length, self.head_num, -1).transpose(0, 2, 1, 3) for x in (query, key, value))
        weights = self.weights(q, k, attn_mask)
        if drop_mask is not None:
            kept = ops.bitwise_and(drop_mask.astype(ms.int32).expand_dims(-1), self.bits) > 0
            weights = weights * kept.reshape(weights.shape).astype(weights.dtype) / self.keep_prob
        return None, None, None, ops.matmul(weights, v).transpose(0, 2, 1, 3).reshape(batch, length, hidden)

    def of_documents(self, query, key, value, ends):
        """(T, A, d): a token attends to those before it whose number of ends before them is its own."""
        place = ops.arange(0, query.shape[0], 1)
        document = (place.reshape(-1, 1) >= ends.reshape(1, -1)).astype(ms.int32).sum(1)
        discard = ops.logical_or(
            document.reshape(-1, 1) != document.reshape(1, -1), place.reshape(-1, 1) < place.reshape(1, -1)
        )
        q, k, v = (x.transpose(1, 0, 2) for x in (query, key, value))
        return ops.matmul(self.weights(q, k, discard), v).transpose(1, 0, 2)

    def weights(self, q, k, discard):
        scores = ops.matmul(q, k.swapaxes(-1, -2)) * self.scale_value
        return ops.softmax(scores + discard.astype(ms.float32) * LOWEST, -1)
