"""Ascend's operators of attention on a CPU, by the formulas of their documentation.

Each has the arguments and inputs of the operator in `mindspore.ops.auto_generate`. What the project does not use is
refused, so that a test cannot pass by an input that is ignored here. `emulate` puts them in the operators' places.
"""

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.parallel import paged_attention


class Emulated(nn.Cell):
    """An operator. It runs whole, whatever its strategy is."""

    def __init__(self):
        super().__init__(auto_prefix=False)

    def shard(self, *_):
        return self


def attend(query, key, value, scale, hidden):
    """Return softmax(scale * q k^T) v of (B, A, Q, d) and (B, A, K, d); `hidden` is true where a token may not look."""
    scores = ops.matmul(query, key.transpose(0, 1, 3, 2)).astype(ms.float32) * scale
    weights = ops.softmax(ops.masked_fill(scores, hidden, Tensor(-1e30, ms.float32)), -1)
    return ops.matmul(weights.astype(value.dtype), value)


def heads_of(x, heads):
    """(B, T, A * d) -> (B, A, T, d)"""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)


class PromptFlashAttention(Emulated):
    """Attention of prompts. attn_mask (T, T) is true where a token may not look; without it all are seen."""

    def __init__(
        self,
        num_heads=1,
        scale_value=1.0,
        pre_tokens=2147483647,
        next_tokens=0,
        input_layout="BSH",
        num_key_value_heads=0,
        sparse_mode=0,
        inner_precise=1,
    ):
        super().__init__()
        assert input_layout == "BSH" and sparse_mode == 0 and num_key_value_heads in (0, num_heads)
        assert pre_tokens == 2147483647 and inner_precise in (0, 1)
        self.num_heads, self.scale_value, self.next_tokens = num_heads, scale_value, next_tokens

    def construct(self, query, key, value, attn_mask=None, *others):
        assert all(other is None for other in others)
        steps = ops.arange(0, query.shape[1])
        later = steps.reshape(1, -1) > steps.reshape(-1, 1) + self.next_tokens  # (Q, K)
        hidden = ops.logical_or(attn_mask, later) if attn_mask is not None else ops.zeros_like(later)
        rows, tokens, width = query.shape
        query, key, value = (heads_of(x, self.num_heads) for x in (query, key, value))
        return attend(query, key, value, self.scale_value, hidden).transpose(0, 2, 1, 3).reshape(rows, tokens, width)


class ReshapeAndCache(Emulated):
    """Writes token i of keys and values (B, T, A * d) into slot slot_mapping[i] of caches (blocks, size, A, d)."""

    def __init__(self):
        super().__init__()
        self.update = ops.ScatterNdUpdate()

    def construct(self, key, value, key_cache, value_cache, slot_mapping):
        size, heads, head_size = key_cache.shape[1:]
        places = ops.stack((slot_mapping // size, slot_mapping % size), -1)
        self.update(value_cache, places, value.reshape(-1, heads, head_size))
        return ops.depend(key, self.update(key_cache, places, key.reshape(-1, heads, head_size)))


class PagedAttention(Emulated):
    """Attention of one token a row, (B, 1, A * d), to the first context_lens[b] tokens of blocks block_tables[b]."""

    def __init__(
        self, head_num, scale_value, kv_head_num, kv_cache_quant_mode="DEFAULT", mask_mode="MASK_DEFAULT", mla_v_dim=0
    ):
        super().__init__()
        assert kv_head_num == head_num and (kv_cache_quant_mode, mask_mode, mla_v_dim) == ("DEFAULT", "MASK_DEFAULT", 0)
        self.head_num, self.scale_value = head_num, scale_value

    def construct(self, query, key_cache, value_cache, block_tables, context_lens):
        rows, _, width = query.shape
        key, value = (
            cache[block_tables].reshape(rows, -1, self.head_num, width // self.head_num).transpose(0, 2, 1, 3)
            for cache in (key_cache, value_cache)
        )
        hidden = ops.arange(0, key.shape[2]).reshape(1, 1, 1, -1) >= context_lens.reshape(rows, 1, 1, 1)
        query = heads_of(query, self.head_num)
        return attend(query, key, value, self.scale_value, hidden).transpose(0, 2, 1, 3).reshape(rows, 1, width)


EMULATIONS = (PromptFlashAttention, ReshapeAndCache, PagedAttention)


def emulate(patch):
    """Put the emulations in the places of the operators in the project's modules, by `patch(module, name, value)`."""
    for emulation in EMULATIONS:
        patch(paged_attention, emulation.__name__, emulation)
