"""Generation in semi-automatic parallel: one graph for prefill and one for decode."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.paged_attention import PagedCache, PagedPlaces, attend_by_caches
from src.parallel.plan.plan import Plan

LOWEST = float(np.finfo(np.float32).min)


class ShardedCache(nn.Cell):
    """KV cache of one layer, cut by heads.

    It replaces `src.inference.mindspore.runtime.KeyValueCache`, because scattered writes can't be cut.

    Inputs:
        places: Positions of the new keys and values, (B, T) int32; and their rows of the cache, (B,) int32. With T = 1,
            B is all rows.
        key, value (B, A, T, d): The new keys and values.
    """

    def __init__(self, config: PanguAlphaConfig, batch: int, capacity: int, tensor: int, name: str):
        super().__init__(auto_prefix=False)
        shape, dtype = (batch, config.num_heads, capacity, config.head_size), getattr(ms, config.compute_dtype)
        self.keys, self.values = (
            Parameter(initializer("zeros", shape, dtype), name=f"cache.{name}.{kind}", requires_grad=False)
            for kind in ("key", "value")
        )
        heads, whole = (1, tensor, 1, 1), (1, 1, 1, 1)
        self.rows, self.capacity = batch, capacity
        self.places = Tensor(np.arange(capacity).reshape(1, 1, capacity, 1), ms.int32)
        self.reshape = ops.Reshape()
        self.equal = ops.Equal().shard((whole, whole))
        self.cast = ops.Cast().shard((whole,))
        self.others = ops.Sub().shard(((), whole))
        self.mul = ops.Mul().shard((heads, whole))
        self.add = ops.Add().shard((heads, heads))
        self.assign = ops.Assign().shard((heads, heads))
        self.pad = ops.Concat(2).shard((heads, heads))
        self.write_rows = ops.ScatterUpdate().shard((heads, (1,), heads))

    def construct(self, places: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        position_ids, rows = places
        if key.shape[2] == 1:
            here = self.cast(self.equal(self.places, self.reshape(position_ids, (-1, 1, 1, 1))), key.dtype)
            others = self.others(1.0, here)
            keys = self.assign(self.keys, self.add(self.mul(self.keys, others), self.mul(key, here)))
            return keys, self.assign(self.values, self.add(self.mul(self.values, others), self.mul(value, here)))
        keys, values = (
            self.write_rows(self.keys, rows, self._padded(key)),
            self.write_rows(self.values, rows, self._padded(value)),
        )
        return ops.depend(key, keys), ops.depend(value, values)

    def _padded(self, x: Tensor) -> Tensor:
        missing = self.capacity - x.shape[2]
        if missing == 0:
            return x
        return self.pad((x, ops.zeros((x.shape[0], x.shape[1], missing, x.shape[3]), x.dtype)))


def make_caches(model: PanguAlphaModel, plan: Plan, batch: int, capacity: int) -> nn.CellList:
    """Return the KV caches of all layers of a model, for plain attention."""
    config = model.config
    return nn.CellList(
        [ShardedCache(config, batch, capacity, plan.tensor, str(layer)) for layer in range(config.num_layers)],
        auto_prefix=False,
    )


def make_paged_caches(model: PanguAlphaModel, plan: Plan, batch: int, capacity: int) -> nn.CellList:
    """Return the KV caches of all layers for Ascend's own operators, and make the attention of a model use them.

    Annotate the model before, because its attention is wrapped here.
    """
    config = model.config
    shape = config.num_heads, config.head_size, batch, capacity, getattr(ms, config.compute_dtype)
    caches = [PagedCache(*shape, str(layer), plan.tensor) for layer in range(config.num_layers)]
    for cache in caches:
        _shard_cache(cache, plan.tensor)
    attend_by_caches(model)
    return nn.CellList(caches, auto_prefix=False)


def _shard_cache(cell: PagedCache, tensor: int) -> None:
    """Cut a cache by heads."""
    tokens, blocks = (1, 1, tensor), (1, 1, tensor, 1)
    cell.scale.shard(((1, tensor), ()))
    cell.write.shard((tokens, tokens, blocks, blocks, (1,)))
    cell.prompt.shard((tokens, tokens, tokens, (1, 1)))
    cell.paged.shard((tokens, blocks, blocks, (1, 1), (1,)))


def _paged_places(capacity: int) -> PagedPlaces:
    cell = PagedPlaces(capacity)
    cell.times.shard(((1, 1), ()))
    cell.add.shard(((1, 1), (1, 1)))
    cell.add_one.shard(((1,), ()))
    cell.range.shard(((1,),))
    cell.greater.shard(((1, 1), (1, 1)))
    return cell


class SemiAutoNextLogits(nn.Cell):
    """Same as `src.inference.mindspore.runtime.NextLogits` with a cache, for a tensor-parallel model.

    Args:
        model: A whole model with its shard strategies (`annotate_model`).
        caches: Caches from `make_caches` or `make_paged_caches`.
        tokens: New tokens of a row in one call; 1 for decode.
    """

    def __init__(self, model: PanguAlphaModel, caches: nn.CellList, tokens: int):
        super().__init__(auto_prefix=False)
        batch, capacity = caches[0].rows, caches[0].capacity
        self.cache_places = _paged_places(capacity) if isinstance(caches[0], PagedCache) else None
        seen = capacity if tokens == 1 else tokens
        self.model, self.caches, self.tokens = model, caches, tokens
        self.steps = Tensor(np.arange(tokens)[None], ms.int32)
        self.places = Tensor(np.arange(seen).reshape(1, 1, seen), ms.int32)
        self.row_begins = Tensor(np.arange(batch) * tokens, ms.int32)
        self.reshape = ops.Reshape()
        self.add = ops.Add().shard(((1, 1), (1, 1)))
        self.less_equal = ops.LessEqual().shard(((1, 1, 1), (1, 1, 1)))
        self.add_begins = ops.Add().shard(((1,), (1,)))
        self.pick = ops.Gather().shard(((1, 1), (1,)))
        self.whole = ops.Maximum().shard(((1, 1), ()))  # changes no number, but gathers the parts of the vocabulary

    def construct(self, ids: Tensor, position: Tensor, last: Tensor, rows: Tensor) -> Tensor:
        position_ids = self.add(self.reshape(position, (-1, 1)), self.steps)
        mask = self.less_equal(self.places, self.reshape(position_ids, (-1, self.tokens, 1)))
        places = (position_ids, rows) if self.cache_places is None else self.cache_places(position_ids, rows)
        caches = ()
        for cache in self.caches:
            caches += (ops.partial(cache, places),)
        x, _ = self.model.backbone(ids, position_ids, mask, None, caches, False)
        x = self.pick(x, self.add_begins(self.row_begins, last), 0)
        logits = self.model.head(x, self.model.backbone.embedding.word_embedding.embedding_table)
        return self.whole(logits, LOWEST)
