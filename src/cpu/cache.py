"""The KV cache."""

from __future__ import annotations

import numpy as np

from src.pangu_alpha_config import PanguAlphaConfig


def cache_names(config: PanguAlphaConfig) -> list[str]:
    """Return the names of the cache's arrays: keys and values of each layer, in this order."""
    return [f"{number}.{kind}" for number in range(config.num_layers) for kind in ("keys", "values")]


def cache_bytes(config: PanguAlphaConfig, rows: int, capacity: int) -> int:
    """Return the size of a cache in bytes."""
    return 2 * config.num_layers * rows * capacity * config.hidden_size * 4


class Cache:
    """Keys and values of each layer, float32 (rows, A, capacity, d). They never move in memory."""

    def __init__(self, config: PanguAlphaConfig, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        shape = (rows, config.num_heads, capacity, config.head_size)
        self.values = {name: np.zeros(shape, np.float32) for name in cache_names(config)}

    def of_row(self, row: int) -> dict[str, np.ndarray]:
        """Return views of one row."""
        return {name: values[row : row + 1] for name, values in self.values.items()}

    def reorder(self, rows: np.ndarray) -> None:
        """Replace row i by a copy of row rows[i]."""
        for values in self.values.values():
            values[:] = values[rows]
