"""Inputs of fixed shapes, for graphs. Padded lengths are powers of two, so that few graphs are compiled."""

from __future__ import annotations

import numpy as np

SMALLEST_BUCKET = 16


def bucket(length: int, seq_length: int) -> int:
    """Return the padded length for a text of `length` tokens: a power of two, at most seq_length."""
    return min(seq_length, row_length(length))


def row_length(tokens: int) -> int:
    """Return the padded length for a row of `tokens` tokens: a power of two without an upper limit."""
    return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())


def every_row(ids: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Return the rows of `Runtime.decode`."""
    return np.arange(len(ids)) if rows is None else rows


def spread(ids: np.ndarray, positions: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and positions int32 (count,), of which `rows` hold the given ones. The others read id 0 at 0."""
    all_ids, all_positions = np.zeros((2, count), np.int32)
    all_ids[rows], all_positions[rows] = ids, positions
    return all_ids, all_positions
