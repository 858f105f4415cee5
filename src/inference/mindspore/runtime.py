"""MindSpore as a runtime of the generation loop (`src.inference.runtime`): prefill, decode, the cache between them."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.cpu_kernels.attach import token_decoder
from src.cpu_kernels.token_decoder import TokenDecoder
from src.inference.padding import bucket
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig

Relay = Callable[..., Tensor]  # see src.parallel.build.connect_inference


class KeyValueCache(nn.Cell):
    """Keys and values of one layer.

    A write is a minimum and then a maximum with the new numbers, which leaves exactly these: on a CPU these two work in
    place, while ScatterNdUpdate copies the whole cache, and so does a Reshape after ScatterUpdate.

    Inputs:
        key, value (B, A, T, d): of T tokens that follow each other.
        places (B, A, T, 3) int32: batch row, head and position of each of them.

    Returns:
        The keys and values to attend to: of one token, all that is cached (B, A, capacity, d); of several, which
        begin a text, themselves.
    """

    def __init__(self, config: PanguAlphaConfig, num_heads: int, batch: int, capacity: int, name: str):
        super().__init__(auto_prefix=False)
        shape = (batch, num_heads, capacity, config.head_size)
        dtype = getattr(ms, config.compute_dtype)
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


class Reorder(nn.Cell):
    """Lets each batch row of all caches become what row rows[i] was; rows (B,) int32. In a graph, for a compiled one
    does not notice what is set outside of it."""

    def __init__(self, caches: nn.CellList):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple([parameter for cache in caches for parameter in (cache.keys, cache.values)])
        self.gather = ops.Gather()
        self.assign = ops.Assign()

    def construct(self, rows: Tensor) -> bool:
        done = ()
        for i in range(len(self.parameters)):
            done += (self.assign(self.parameters[i], self.gather(self.parameters[i], rows, 0)),)
        return ops.depend(True, done)


class NextLogits(nn.Cell):
    """The model over T new tokens a row and the cached ones before them; with capacity 0, over whole texts, no cache.

    Inputs:
        ids (B, T) int32; position (B,) int32, of each row's first new token; last (B,) int32, which of the T tokens
        is the row's last; rows (B,) int32, their places in the cache: where T is 1, all of it in order.
        x (B * T, H): what a pipeline stage receives from the one before; None on the first.

    Returns:
        logits (B, V) float32 after the last tokens; of a stage before the last, its hidden states (B * T, H).
    """

    def __init__(self, model: PanguAlphaModel, batch: int = 0, capacity: int = 0):
        super().__init__(auto_prefix=False)
        config, layers = model.config, model.layers
        self.model = model
        self.capacity = capacity
        self.hidden_size = config.hidden_size
        self.has_head = model.backbone.top_query_layer in layers
        self.num_heads = layers[0].attention.num_heads  # of a slice of the model, fewer than the configuration's
        self.caches = (
            nn.CellList(
                [KeyValueCache(config, self.num_heads, batch, capacity, str(number)) for number in range(len(layers))],
                auto_prefix=False,
            )
            if capacity
            else None
        )

    def construct(self, ids: Tensor, position: Tensor, last: Tensor, rows: Tensor, x: Tensor | None = None) -> Tensor:
        batch, tokens = ids.shape
        position_ids = ops.reshape(position, (batch, 1)) + ops.cast(ops.range(0, tokens, 1), ms.int32)
        before = ids if x is None else x
        if self.caches is None:
            return self._last_logits(before, position_ids, tokens, last, None)
        heads = ops.cast(ops.range(0, self.num_heads, 1), ms.int32)
        places = ops.concat(
            (
                ops.tile(ops.reshape(rows, (batch, 1, 1, 1)), (1, self.num_heads, tokens, 1)),
                ops.tile(ops.reshape(heads, (1, self.num_heads, 1, 1)), (batch, 1, tokens, 1)),
                ops.tile(ops.reshape(position_ids, (batch, 1, tokens, 1)), (1, self.num_heads, 1, 1)),
            ),
            -1,
        )  # (B, A, T, 3)
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
            # Read before the caches are written, as the embedding reads it: of a parameter that is read on both sides
            # of a write MindSpore makes two copies. The reshape changes nothing but the place of the reading.
            table = ops.reshape(self.model.backbone.embedding.word_embedding.embedding_table, (-1, self.hidden_size))
        mask = ops.range(0, seen, 1) <= ops.reshape(position_ids, (batch, tokens, 1))
        # Nothing is dropped at experts: what a token gets may not depend on how many are computed with it.
        x, _ = self.model.backbone(before, position_ids, mask, None, caches, False)
        if not self.has_head:
            return x
        row = ops.cast(ops.range(0, batch, 1), ms.int32) * tokens + last
        return self.model.head(ops.gather(x, row, 0), table)


class CachedRuntime:
    """Incremental generation: one pass over the prompts, then one token a row each time.

    One graph is compiled for each bucket of prompt lengths and one for the tokens after it.

    Args:
        model: The model, or this rank's slice of it.
        relay: Takes what pipeline stages compute from one to the next; None where the model is in one piece.
        decode_by_kernel: Decode tokens with the compiled kernel where it fits.
    """

    def __init__(self, model: PanguAlphaModel, relay: Relay | None = None, decode_by_kernel: bool = False):
        self.seq_length = model.config.seq_length
        self.vocab_size = model.config.vocab_size
        self.model = model
        self._relay = relay
        self._decode_by_kernel = decode_by_kernel
        self._next_logits: Callable[..., Tensor] | None = None
        self._reorder: Callable[[Tensor], bool] | None = None
        self._token_decoder: TokenDecoder | None = None
        self._cached_for = (0, 0)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `src.inference.runtime.Runtime`."""
        self.open(len(ids), capacity)
        return self.join(ids, lengths, np.arange(len(ids)))

    def open(self, rows: int, capacity: int) -> None:
        """See `src.inference.runtime.RowRuntime`."""
        wanted = (rows, bucket(capacity, self.seq_length))
        if self._cached_for == wanted:
            return
        self._next_logits = self._reorder = self._token_decoder = None  # the old caches' memory first
        cell = NextLogits(self.model, *wanted)
        self._cached_for = wanted
        self._next_logits, self._reorder = _compiled(cell), _compiled(Reorder(cell.caches))
        if self._decode_by_kernel:
            self._token_decoder = token_decoder(self.model, [(cache.keys, cache.values) for cache in cell.caches])

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `src.inference.runtime.RowRuntime`."""
        padded = _pad(ids, bucket(ids.shape[1], self.seq_length))
        logits = _compute(self._next_logits, self._relay, padded, np.zeros(len(ids)), lengths - 1, rows)
        if self._token_decoder:
            self._token_decoder.locate()
        return logits

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `src.inference.runtime.Runtime`."""
        if self._token_decoder:
            return self._token_decoder(ids, positions)
        rows = np.arange(len(ids))
        return _compute(self._next_logits, self._relay, ids[:, None], positions, np.zeros(len(ids)), rows)

    def reorder(self, rows: np.ndarray) -> None:
        """See `src.inference.runtime.Runtime`."""
        self._reorder(Tensor(rows.astype(np.int32)))
        if self._token_decoder:
            self._token_decoder.locate()


class RecomputeRuntime:
    """The check of `CachedRuntime`: computes the whole text anew for each token."""

    def __init__(self, model: PanguAlphaModel, relay: Relay | None = None):
        self.seq_length = model.config.seq_length
        self.vocab_size = model.config.vocab_size
        self.model = model
        self._relay = relay
        self._logits = NextLogits(model)
        self._ids = np.zeros((0, 0), np.int32)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `src.inference.runtime.Runtime`."""
        self._ids = _pad(ids, bucket(capacity, self.seq_length))
        return self._next_logits(lengths - 1)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `src.inference.runtime.Runtime`."""
        self._ids[np.arange(len(ids)), positions] = ids
        return self._next_logits(positions)

    def reorder(self, rows: np.ndarray) -> None:
        """See `src.inference.runtime.Runtime`."""
        self._ids = self._ids[rows]

    def _next_logits(self, last: np.ndarray) -> np.ndarray:
        length = bucket(int(last.max()) + 1, self.seq_length)
        rows = np.arange(len(last))
        return _compute(self._logits, self._relay, self._ids[:, :length], np.zeros(len(last)), last, rows)


def _compute(stage: Callable[..., Tensor], relay: Relay | None, *inputs: np.ndarray) -> np.ndarray:
    """What NextLogits computes of integer inputs, through all stages."""
    tensors = [Tensor(np.ascontiguousarray(values, np.int32)) for values in inputs]
    return (relay(stage, *tensors) if relay else stage(*tensors)).asnumpy()


def _compiled(cell: nn.Cell) -> Callable:
    """The cell's graph. A cell's own call looks through all of its cells each time, which takes milliseconds."""

    @ms.jit
    def call(*inputs: Tensor) -> Tensor:
        return cell(*inputs)

    return call


def _pad(ids: np.ndarray, length: int) -> np.ndarray:
    return np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
