"""Runtimes that compute with MindSpore cells: one with a KV cache, and a slow one that checks it."""

from collections.abc import Callable
from typing import NoReturn

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.common.memory import require_memory
from src.inference.padding import bucket, every_row, spread
from src.nn.operators import for_each
from src.pangu_alpha import PanguAlphaModel
from src.parallel.paged_attention import PagedCache, PagedPlaces, attends_by_caches
from src.parallel.plan.sizes import ITEM_SIZE

Relay = Callable[..., Tensor]  # see src.parallel.build.connect_inference


class KeyValueCache(nn.Cell):
    """The KV cache of one layer.

    A write is ScatterNdMin followed by ScatterNdMax, which leaves exactly the new numbers. On a CPU these two work in
    place. ScatterNdUpdate copies the whole cache, and so does ScatterUpdate with a Reshape after it.

    Inputs:
        places (B, A, T, 3) int32: batch row, head and position of each token, from CachePlaces.
        key, value (B, A, T, d): keys and values of T consecutive tokens.

    Returns:
        The keys and values to attend to. For T = 1 they are the whole cache (B, A, capacity, d). For T > 1 the tokens
        are the beginning of a text, and they are the inputs.
    """

    def __init__(self, num_heads: int, head_size: int, rows: int, capacity: int, dtype: ms.Type, name: str):
        super().__init__(auto_prefix=False)
        self.rows = rows
        shape = (rows, num_heads, capacity, head_size)
        self.keys, self.values = (
            Parameter(Tensor(np.zeros(shape), dtype), name=f"cache.{name}.{kind}", requires_grad=False)
            for kind in ("key", "value")
        )
        self.lower_to = ops.ScatterNdMin()
        self.raise_to = ops.ScatterNdMax()

    def construct(self, places: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.raise_to(self.lower_to(self.keys, places, key), places, key)
        values = self.raise_to(self.lower_to(self.values, places, value), places, value)
        if key.shape[2] == 1:
            return keys, values
        return ops.depend(key, keys), ops.depend(value, values)


class CachePlaces(nn.Cell):
    """Where new tokens lie in a KeyValueCache. All layers share it.

    Inputs:
        position_ids (B, T) int32: positions of the new tokens.
        rows (B,) int32: rows of the cache.

    Returns:
        (B, A, T, 3) int32: batch row, head and position of each token.
    """

    def __init__(self, num_heads: int):
        super().__init__(auto_prefix=False)
        self.num_heads = num_heads

    def construct(self, position_ids: Tensor, rows: Tensor) -> Tensor:
        batch, tokens = position_ids.shape
        heads = ops.cast(ops.range(0, self.num_heads, 1), ms.int32)
        return ops.concat(
            (
                ops.tile(ops.reshape(rows, (batch, 1, 1, 1)), (1, self.num_heads, tokens, 1)),
                ops.tile(ops.reshape(heads, (1, self.num_heads, 1, 1)), (batch, 1, tokens, 1)),
                ops.tile(ops.reshape(position_ids, (batch, 1, tokens, 1)), (1, self.num_heads, 1, 1)),
            ),
            -1,
        )


class Reorder(nn.Cell):
    """Replaces row i of all caches by row rows[i]; rows (B,) int32.

    It is a graph of its own, because a compiled graph does not see parameters that Python code sets.
    """

    def __init__(self, caches: nn.CellList):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple([parameter for cache in caches for parameter in (cache.keys, cache.values)])
        self.blocks = caches[0].keys.shape[0] // caches[0].rows  # of a row, in a PagedCache
        self.gather = ops.Gather()
        self.assign = ops.Assign()

    def construct(self, rows: Tensor) -> bool:
        if self.blocks > 1:
            rows = ops.reshape(rows, (-1, 1)) * self.blocks + ops.cast(ops.range(0, self.blocks, 1), ms.int32)
            rows = ops.reshape(rows, (-1,))
        return ops.depend(True, for_each(ops.partial(self._reorder, rows), self.parameters))

    def _reorder(self, rows: Tensor, cache: Parameter) -> Tensor:
        return self.assign(cache, self.gather(cache, rows, 0))


class NextLogits(nn.Cell):
    """Computes the logits after T new tokens in each row.

    Args:
        model: The model, or this rank's slice of it.
        batch: Rows of the KV cache.
        capacity: Tokens of a row of the cache; 0 for no cache, then a call computes whole texts.

    Inputs:
        ids (B, T) int32: the new tokens.
        position (B,) int32: position of the first new token of each row.
        last (B,) int32: index of the last of the T tokens in each row, the others are padding.
        rows (B,) int32: rows of the cache. If T is 1, they are all rows in order.
        x (B * T, H): hidden states from the previous pipeline stage; None on the first stage.

    Returns:
        Logits (B, V) float32 after the last tokens; hidden states (B * T, H) on a stage before the last.

    Raises:
        InputError: The memory is not enough for the cache.
    """

    def __init__(self, model: PanguAlphaModel, batch: int = 0, capacity: int = 0):
        super().__init__(auto_prefix=False)
        config, layers = model.config, model.layers
        if ms.get_context("device_target") == "CPU":
            numbers = 2 * len(layers) * batch * layers[0].attention.core.num_heads * capacity * config.head_size
            require_memory(
                f"a KV cache for {batch} texts of {capacity} tokens",
                numbers * ITEM_SIZE[config.compute_dtype],
                "take fewer at once (--rows, --batch_size, generation.num_beams or num_samples)",
            )
        self.model = model
        self.capacity = capacity
        self.hidden_size = config.hidden_size
        self.has_head = model.backbone.top_query_layer in layers
        self.places, self.caches = _make_caches(model, batch, capacity) if capacity else (None, None)

    def construct(self, ids: Tensor, position: Tensor, last: Tensor, rows: Tensor, x: Tensor | None = None) -> Tensor:
        batch, tokens = ids.shape
        position_ids = ops.reshape(position, (batch, 1)) + ops.cast(ops.range(0, tokens, 1), ms.int32)
        before = ids if x is None else x
        if self.places is None:
            return self._last_logits(before, position_ids, tokens, last, None)
        places = self.places(position_ids, rows)
        caches = ()
        for cell in self.caches:
            caches += (ops.partial(cell, places),)
        return self._last_logits(before, position_ids, self.capacity if tokens == 1 else tokens, last, caches)

    def _last_logits(
        self, before: Tensor, position_ids: Tensor, seen: int, last: Tensor, caches: tuple[Callable, ...] | None
    ) -> Tensor:
        batch, tokens = position_ids.shape
        table = None
        if self.has_head:
            # The reshape only moves this read before the write of the caches, where the embedding reads the table too.
            # MindSpore makes two copies of a parameter that is read before and after a write.
            table = ops.reshape(self.model.backbone.embedding.word_embedding.embedding_table, (-1, self.hidden_size))
        if tokens == 1 and self.capacity:
            visible = ops.range(0, seen, 1) <= ops.reshape(position_ids, (batch, tokens, 1))
        else:
            visible = ops.zeros((batch, tokens), ms.int32)  # each row is one document
        # False: experts drop no tokens, so that the result of a token does not depend on the rest of the batch.
        x, _ = self.model.backbone(before, position_ids, visible, None, caches, False)
        if not self.has_head:
            return x
        row = ops.cast(ops.range(0, batch, 1), ms.int32) * tokens + last
        return self.model.head(ops.gather(x, row, 0), table)


def _make_caches(model: PanguAlphaModel, rows: int, capacity: int) -> tuple[nn.Cell, nn.CellList]:
    """Return what computes the places of new tokens, and the KV cache of each layer: those that its attention takes."""
    core = model.layers[0].attention.core  # a slice of the model has fewer heads than the configuration
    config = model.config
    shape = core.num_heads, config.head_size, rows, capacity, getattr(ms, config.compute_dtype)
    is_paged = attends_by_caches(model)
    make = PagedCache if is_paged else KeyValueCache
    caches = nn.CellList([make(*shape, str(number)) for number in range(len(model.layers))], auto_prefix=False)
    return PagedPlaces(capacity) if is_paged else CachePlaces(core.num_heads), caches


class CachedRuntime:
    """The runtime with a KV cache: a `RowRuntime` (`src.inference.runtime`).

    MindSpore compiles one graph for each bucket of prompt lengths, and one for decoding.

    Args:
        model: The model, or this rank's slice of it.
        relay: Passes hidden states between pipeline stages; None for a model in one piece.
    """

    reads_together = False  # there would be a graph for each number of texts

    def __init__(self, model: PanguAlphaModel, relay: Relay | None = None):
        self.seq_length = model.config.seq_length
        self.vocab_size = model.config.vocab_size
        self.model = model
        self._relay = relay
        self._next_logits: Callable[..., Tensor] = _not_open
        self._reorder: Callable[[Tensor], bool] = _not_open
        self._cached_for = (0, 0)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `Runtime`."""
        self.open(len(ids), capacity)
        return self.join(ids, lengths, np.arange(len(ids)))

    def open(self, rows: int, capacity: int) -> None:
        """See `RowRuntime`."""
        wanted = (rows, bucket(capacity, self.seq_length))
        if self._cached_for == wanted:
            return
        self._next_logits, self._reorder = _not_open, _not_open  # free the old caches first
        cell = NextLogits(self.model, *wanted)
        self._cached_for = wanted
        self._next_logits, self._reorder = _compiled(cell), _compiled(Reorder(cell.caches))

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `RowRuntime`."""
        padded = _pad(ids, bucket(ids.shape[1], self.seq_length))
        return _compute(self._next_logits, self._relay, padded, np.zeros(len(ids)), lengths - 1, rows)

    def decode(self, ids: np.ndarray, positions: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """See `Runtime`. The graph computes all rows."""
        rows, (count, _) = every_row(ids, rows), self._cached_for
        ids, positions = spread(ids, positions, rows, count)
        inputs = ids[:, None], positions, np.zeros(count), np.arange(count)
        return _compute(self._next_logits, self._relay, *inputs)[rows]

    def reorder(self, rows: np.ndarray) -> None:
        """See `Runtime`."""
        self._reorder(Tensor(rows.astype(np.int32)))


class RecomputeRuntime:
    """A `Runtime` without a cache: it computes the whole text for each token, to check `CachedRuntime`."""

    def __init__(self, model: PanguAlphaModel, relay: Relay | None = None):
        self.seq_length = model.config.seq_length
        self.vocab_size = model.config.vocab_size
        self.model = model
        self._relay = relay
        self._logits = NextLogits(model)
        self._ids = np.zeros((0, 0), np.int32)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `Runtime`."""
        self._ids = _pad(ids, bucket(capacity, self.seq_length))
        return self._next_logits(lengths - 1)

    def decode(self, ids: np.ndarray, positions: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """See `Runtime`. The graph computes all rows."""
        rows = every_row(ids, rows)
        self._ids[rows, positions] = ids
        _, last = spread(ids, positions, rows, len(self._ids))
        return self._next_logits(last)[rows]

    def reorder(self, rows: np.ndarray) -> None:
        """See `Runtime`."""
        self._ids = self._ids[rows]

    def _next_logits(self, last: np.ndarray) -> np.ndarray:
        length = bucket(int(last.max()) + 1, self.seq_length)
        rows = np.arange(len(last))
        return _compute(self._logits, self._relay, self._ids[:, :length], np.zeros(len(last)), last, rows)


def _compute(stage: Callable[..., Tensor], relay: Relay | None, *inputs: np.ndarray) -> np.ndarray:
    """Run a NextLogits with integer inputs, through all pipeline stages."""
    tensors = [Tensor(np.ascontiguousarray(values, np.int32)) for values in inputs]
    return (relay(stage, *tensors) if relay else stage(*tensors)).asnumpy()


def _not_open(*_: Tensor) -> NoReturn:
    raise RuntimeError("open() comes before the first token")


def _compiled(cell: nn.Cell) -> Callable:
    """Return the compiled graph of a cell. A call of the cell itself visits all subcells, which takes milliseconds."""

    @ms.jit
    def call(*inputs: Tensor) -> Tensor:
        return cell(*inputs)

    return call


def _pad(ids: np.ndarray, length: int) -> np.ndarray:
    return np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
