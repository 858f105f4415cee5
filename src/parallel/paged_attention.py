"""Attention of generation by the operators of Ascend A2 and A3 (parallel.attention flash).

PromptFlashAttention reads prompts. ReshapeAndCache writes the keys and values of all new tokens of a layer into a cache
of blocks, and PagedAttention continues texts from it. Neither attention keeps an array of scores. MindFormers and
vLLM-MindSpore write and read their caches with the same two operators. Here, a row of the cache is a fixed sequence of
blocks.

The queries are scaled before their products with the keys, because PagedAttention scales after them ("scale after
qkbmm" in CANN's documentation), where float16 scores could overflow.

The operators have no kernel on a CPU. The tests emulate their documented formulas (tests/support/ascend_operators.py).
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import PagedAttention, PromptFlashAttention, ReshapeAndCache

from src.nn.attention import CoreAttention
from src.pangu_alpha import PanguAlphaModel
from src.parallel.plan.sharding import CACHE_BLOCK, cache_blocks

FULL_PRECISION = 0  # PromptFlashAttention's inner_precise: float32 scores


def attend_by_caches(model: PanguAlphaModel) -> None:
    """Leave the attention of a model to the PagedCaches that it is called with.

    Args:
        model: A whole model with its shard strategies, or a rank's part of one with its collectives.
    """
    for layer in model.layers:
        layer.attention.core = AttentionOfCache(layer.attention.core)


def attends_by_caches(model: PanguAlphaModel) -> bool:
    """Return whether `attend_by_caches` has had a model."""
    return isinstance(model.layers[0].attention.core, AttentionOfCache)


class AttentionOfCache(nn.Cell):
    """Replaces a CoreAttention. With a KV cache, the cache attends; else the plain attention does, as for scoring.

    With a cache nobody reads the bias, so the compiler leaves the mask out.

    Inputs:
        q, k, v, bias, dropout_key: See CoreAttention.
        cache: A function of q, k, v (B * T, H) that returns what PagedCache returns; None for no cache.
    """

    def __init__(self, plain: CoreAttention):
        super().__init__()
        self.plain = plain
        self.num_heads, self.head_size = plain.num_heads, plain.head_size

    def construct(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        dropout_key: Tensor | None = None,
        cache: Callable | None = None,
    ) -> Tensor:
        return self.plain(q, k, v, bias, dropout_key) if cache is None else cache(q, k, v)


class PagedPlaces(nn.Cell):
    """Where new tokens lie in the cache, and what they attend to. All layers share it.

    Args:
        capacity: Tokens of a row of the cache.

    Inputs:
        position_ids (B, T) int32: Positions of the new tokens. With T > 1 they are the beginnings of texts.
        rows (B,) int32: Rows of the cache.

    Returns:
        slots (B * T,) int32: Places of the new tokens, counted over all blocks.
        For T > 1: hidden (T, T) bool, true where a token may not attend.
        For T = 1: tables (B, blocks) int32, the blocks of each row; and lengths (B,) int32, its tokens, the new one
        included.
    """

    def __init__(self, capacity: int):
        super().__init__(auto_prefix=False)
        self.blocks = cache_blocks(capacity)
        self.numbers = Tensor(np.arange(self.blocks)[None], ms.int32)
        self.reshape = ops.Reshape()
        self.times = ops.Mul()
        self.add = ops.Add()
        self.add_one = ops.Add()
        self.range = ops.Range()
        self.greater = ops.Greater()

    def construct(self, position_ids: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        tokens = position_ids.shape[1]
        first = self.times(self.reshape(rows, (-1, 1)), self.blocks)  # (B, 1)
        slots = self.reshape(self.add(self.times(first, CACHE_BLOCK), position_ids), (-1,))
        if tokens == 1:
            return slots, self.add(first, self.numbers), self.add_one(self.reshape(position_ids, (-1,)), 1)
        steps = self.range(0, tokens, 1)
        return slots, self.greater(self.reshape(steps, (1, tokens)), self.reshape(steps, (tokens, 1)))


class PagedCache(nn.Cell):
    """The KV cache of one layer, and attention to it.

    Args:
        num_heads: A, the heads of the graph.
        head_size: d.
        rows, capacity: Rows of the cache, and tokens of a row.
        dtype: Of keys and values.
        name: Name of the layer in the names of the parameters.
        parts: Ranks that share the heads of the graph, in semi-automatic parallel. The compiler tells the number of
            heads of a rank to PromptFlashAttention, but not to PagedAttention.

    Inputs:
        places: From PagedPlaces.
        query, key, value (B * T, A * d): Of the new tokens.

    Returns:
        Weighted sums of the values, (B * T, A * d).
    """

    def __init__(
        self, num_heads: int, head_size: int, rows: int, capacity: int, dtype: ms.Type, name: str, parts: int = 1
    ):
        super().__init__(auto_prefix=False)
        self.rows, self.capacity, self.hidden_size = rows, capacity, num_heads * head_size
        shape = (rows * cache_blocks(capacity), CACHE_BLOCK, num_heads, head_size)
        self.keys, self.values = (
            Parameter(initializer("zeros", shape, dtype), name=f"cache.{name}.{kind}", requires_grad=False)
            for kind in ("key", "value")
        )
        self.factor = head_size**-0.5
        self.scale = ops.Mul()
        self.reshape = ops.Reshape()
        self.write = ReshapeAndCache()
        self.prompt = PromptFlashAttention(num_heads, input_layout="BSH", inner_precise=FULL_PRECISION)
        self.paged = PagedAttention(num_heads // parts, 1.0, num_heads // parts)

    def construct(self, places: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens = places[1].shape[0] if len(places) == 2 else 1
        shape = (-1, tokens, self.hidden_size)
        key, value = self.reshape(key, shape), self.reshape(value, shape)
        query = self.reshape(self.scale(query, self.factor), shape)
        query = ops.depend(query, self.write(key, value, self.keys, self.values, places[0]))
        if tokens > 1:
            mixed = self.prompt(query, key, value, places[1], None, None, None, None, None, None, None, None)
        else:
            mixed = self.paged(query, self.keys, self.values, places[1], places[2])
        return self.reshape(mixed, (-1, self.hidden_size))
