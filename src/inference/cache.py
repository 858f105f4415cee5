"""The KV cache."""

from __future__ import annotations

import numpy as np

from src.common.memory import require_memory
from src.pangu_alpha_config import PanguAlphaConfig


def cache_names(config: PanguAlphaConfig) -> list[str]:
    """Return the names of the cache's arrays: keys and values of each layer, in this order."""
    return [f"{number}.{kind}" for number in range(config.num_layers) for kind in ("keys", "values")]


def cache_bytes(config: PanguAlphaConfig, rows: int, capacity: int) -> int:
    """Return the size of a cache in bytes."""
    return 2 * config.num_layers * rows * capacity * config.hidden_size * 4


class Cache:
    """Keys and values of each layer, float32 (rows, A, capacity, d). They never move in memory.

    Attributes:
        values: The arrays by `cache_names`.
        addresses: Addresses of the arrays, in this order, for compiled kernels.
    """

    def __init__(self, config: PanguAlphaConfig, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        shape = (rows, config.num_heads, capacity, config.head_size)
        self.values = {name: np.zeros(shape, np.float32) for name in cache_names(config)}
        self.addresses = [values.ctypes.data for values in self.values.values()]

    def of_row(self, row: int) -> dict[str, np.ndarray]:
        """Return views of one row."""
        return {name: values[row : row + 1] for name, values in self.values.items()}

    def reorder(self, rows: np.ndarray) -> None:
        """Replace row i by a copy of row rows[i]."""
        for values in self.values.values():
            values[:] = values[rows]


class CacheOwner:
    """The methods of a `RowRuntime` that concern its cache. `join` and `decode` are the runtime's own.

    Attributes:
        config: The network.
        takes_fewer: How a user asks for a smaller cache, for the message.
    """

    config: PanguAlphaConfig
    takes_fewer = "ask for fewer at once (--rows)"
    _cache: Cache | None = None

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `Runtime`."""
        self.open(len(ids), capacity)
        return self.join(ids, lengths, np.arange(len(ids)))

    def open(self, rows: int, capacity: int) -> None:
        """See `RowRuntime`."""
        if self._cache is None or (self._cache.rows, self._cache.capacity) != (rows, capacity):
            self._cache = None  # free the memory of the old cache first
            require_memory(
                f"a KV cache for {rows} texts of {capacity} tokens",
                cache_bytes(self.config, rows, capacity),
                self.takes_fewer,
            )
            self._cache = Cache(self.config, rows, capacity)

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `RowRuntime`."""
        raise NotImplementedError

    def reorder(self, rows: np.ndarray) -> None:
        """See `Runtime`."""
        self._opened().reorder(rows)

    def _opened(self) -> Cache:
        assert self._cache, "open() comes first"
        return self._cache
