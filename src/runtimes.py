"""MindSpore as a runtime of the generation loop (`src.generate.Runtime`): prefill, decode, the cache between them."""

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.nn.utils import no_init_parameters

from src.checkpoint import store
from src.cpu_kernels.attach import attach_to_model, token_decoder
from src.cpu_kernels.token_decoder import TokenDecoder
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig

SMALLEST_BUCKET = 16


def bucket(length: int, seq_length: int) -> int:
    """The padded length that is computed for `length` tokens: a power of two, so that few graphs are compiled."""
    return min(seq_length, max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()))


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

    def __init__(self, config: PanguAlphaConfig, batch: int, capacity: int, name: str):
        super().__init__(auto_prefix=False)
        shape = (batch, config.num_heads, capacity, config.head_size)
        dtype = getattr(ms, config.compute_dtype)
        self.keys, self.values = (Parameter(Tensor(np.zeros(shape), dtype), name=f"cache.{name}.{kind}",
                                            requires_grad=False) for kind in ("key", "value"))
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
        is the row's last.

    Returns:
        logits (B, V) float32 after the last tokens.
    """

    def __init__(self, model: PanguAlphaModel, batch: int = 0, capacity: int = 0):
        super().__init__(auto_prefix=False)
        config = model.config
        self.model = model
        self.capacity = capacity
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_heads
        heads = np.indices((batch, config.num_heads)).transpose(1, 2, 0)[:, :, None]
        self.rows_and_heads = Tensor(heads, ms.int32)                                       # (B, A, 1, 2)
        self.caches = nn.CellList([KeyValueCache(config, batch, capacity, str(layer))
                                   for layer in range(config.num_layers)], auto_prefix=False) if capacity else None

    def construct(self, ids: Tensor, position: Tensor, last: Tensor) -> Tensor:
        batch, tokens = ids.shape
        position_ids = ops.reshape(position, (batch, 1)) + ops.cast(ops.range(0, tokens, 1), ms.int32)
        if self.caches is None:
            return self._last_logits(ids, position_ids, tokens, last, None)
        places = ops.tile(ops.reshape(position_ids, (batch, 1, tokens, 1)), (1, self.num_heads, 1, 1))
        places = ops.concat((ops.tile(self.rows_and_heads, (1, 1, tokens, 1)), places), -1)  # (B, A, T, 3)
        caches = ()
        for cell in self.caches:
            caches += (ops.partial(cell, places),)
        return self._last_logits(ids, position_ids, self.capacity if tokens == 1 else tokens, last, caches)

    def _last_logits(self, ids: Tensor, position_ids: Tensor, seen: int, last: Tensor,
                     caches: tuple[Callable, ...] | None) -> Tensor:
        batch, tokens = ids.shape
        # Read before the caches are written, as the embedding reads it: of a parameter that is read on both sides of a
        # write MindSpore makes two copies. The reshape changes nothing but the place of the reading.
        table = ops.reshape(self.model.backbone.embedding.word_embedding.embedding_table, (-1, self.hidden_size))
        mask = ops.range(0, seen, 1) <= ops.reshape(position_ids, (batch, tokens, 1))
        # Nothing is dropped at experts: what a token gets may not depend on how many are computed with it.
        x, _ = self.model.backbone(ids, position_ids, mask, None, caches, False)
        row = ops.cast(ops.range(0, batch, 1), ms.int32) * tokens + last
        return self.model.head(ops.gather(x, row, 0), table)


class CachedRuntime:
    """Incremental generation: one pass over the prompts, then one token a row each time.

    One graph is compiled for each bucket of prompt lengths and one for the tokens after it.

    Args:
        model: The model.
        cpu_kernels: Compute with the compiled kernels where they fit (`ParallelConfig.uses_cpu_kernels`). They are
            attached to the model.
    """

    def __init__(self, model: PanguAlphaModel, cpu_kernels: bool = False):
        self.seq_length = model.config.seq_length
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._cpu_kernels = cpu_kernels
        self._next_logits: Callable[..., Tensor] | None = None
        self._reorder: Callable[[Tensor], bool] | None = None
        self._token_decoder: TokenDecoder | None = None
        self._cached_for = (0, 0)
        if cpu_kernels:
            attach_to_model(model)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `src.generate.Runtime`."""
        batch = len(ids)
        wanted = (batch, bucket(capacity, self.seq_length))
        if self._cached_for != wanted:
            self._allocate(*wanted)
        padded = _pad(ids, bucket(ids.shape[1], self.seq_length))
        logits = self._next_logits(_int32(padded), _int32(np.zeros(batch)), _int32(lengths - 1)).asnumpy()
        if self._token_decoder:
            self._token_decoder.locate()
        return logits

    def _allocate(self, batch: int, capacity: int) -> None:
        self._next_logits = self._reorder = self._token_decoder = None  # the old caches' memory first
        cell = NextLogits(self._model, batch, capacity)
        self._cached_for = (batch, capacity)
        self._next_logits, self._reorder = _compiled(cell), _compiled(Reorder(cell.caches))
        if self._cpu_kernels:
            self._token_decoder = token_decoder(self._model, [(cache.keys, cache.values) for cache in cell.caches])

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `src.generate.Runtime`."""
        if self._token_decoder:
            return self._token_decoder(ids, positions)
        return self._next_logits(_int32(ids[:, None]), _int32(positions), _int32(np.zeros(len(ids)))).asnumpy()

    def reorder(self, rows: np.ndarray) -> None:
        """See `src.generate.Runtime`."""
        self._reorder(_int32(rows))
        if self._token_decoder:
            self._token_decoder.locate()


class RecomputeRuntime:
    """The check of `CachedRuntime`: computes the whole text anew for each token."""

    def __init__(self, model: PanguAlphaModel):
        self.seq_length = model.config.seq_length
        self.vocab_size = model.config.vocab_size
        self._logits = NextLogits(model)
        self._ids = np.zeros((0, 0), np.int32)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `src.generate.Runtime`."""
        self._ids = _pad(ids, bucket(capacity, self.seq_length))
        return self._compute(lengths - 1)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `src.generate.Runtime`."""
        self._ids[np.arange(len(ids)), positions] = ids
        return self._compute(positions)

    def reorder(self, rows: np.ndarray) -> None:
        """See `src.generate.Runtime`."""
        self._ids = self._ids[rows]

    def _compute(self, last: np.ndarray) -> np.ndarray:
        length = bucket(int(last.max()) + 1, self.seq_length)
        return self._logits(_int32(self._ids[:, :length]), _int32(np.zeros(len(last))), _int32(last)).asnumpy()


def _compiled(cell: nn.Cell) -> Callable:
    """The cell's graph. A cell's own call looks through all of its cells each time, which takes milliseconds."""
    @ms.jit
    def call(*inputs: Tensor) -> Tensor:
        return cell(*inputs)

    return call


def _pad(ids: np.ndarray, length: int) -> np.ndarray:
    return np.pad(ids, ((0, 0), (0, length - ids.shape[1])))


def _int32(values: np.ndarray) -> Tensor:
    return Tensor(np.ascontiguousarray(values, np.int32))


def build_runtime(model: PanguAlphaModel, use_past: bool = True,
                  cpu_kernels: bool = False) -> CachedRuntime | RecomputeRuntime:
    """The runtime of a model: with its cache, and where wanted the compiled kernels, or the slow check without."""
    return CachedRuntime(model, cpu_kernels) if use_past else RecomputeRuntime(model)


def load_model(config: PanguAlphaConfig, weights: Path | None) -> PanguAlphaModel:
    """A model with the weights of a .ckpt file, or with random ones.

    Raises:
        InputError: The file doesn't fit.
    """
    if weights is None:
        return PanguAlphaModel(config)
    with no_init_parameters():  # drawing random numbers would only cost time
        model = PanguAlphaModel(config)
    store.load(weights, model.get_parameters())
    return model
