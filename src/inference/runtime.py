"""What the generation loop asks of a model: two protocols, `Runtime` and `RowRuntime`."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Runtime(Protocol):
    """A model that is ready to compute, and the KV cache of the texts that it has read.

    Attributes:
        seq_length: Rows of the position table, which is the longest text in tokens.
        vocab_size: V, the width of the logits.
    """

    seq_length: int
    vocab_size: int

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """Clear the cache and read B prompts.

        Args:
            ids: int32 (B, P), padded on the right.
            lengths: int32 (B,), the true lengths of the prompts, each at least 1.
            capacity: Most tokens that a row will ever hold, prompt and answer together.

        Returns:
            float32 (B, V), the logits after the last token of each prompt.
        """

    def decode(self, ids: np.ndarray, positions: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Read one more token in some rows. The other rows hold no text afterwards.

        Args:
            ids: int32 (n,).
            positions: int32 (n,), each below the capacity.
            rows: int64 (n,), different row numbers; None for all rows in order.

        Returns:
            float32 (n, V), the logits after these tokens.
        """

    def reorder(self, rows: np.ndarray) -> None:
        """Replace row i of the cache by a copy of row rows[i]; rows is int64 (B,)."""


class RowRuntime(Runtime, Protocol):
    """A runtime that can start a new text in some rows while the others continue.

    Attributes:
        reads_together: Whether `join` reads several short texts in less time than one after the other.
    """

    reads_together: bool

    def open(self, rows: int, capacity: int) -> None:
        """Allocate a cache of `rows` rows with undefined content.

        Raises:
            InputError: This runtime has no room for so many rows.
        """

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Start n new texts in some of the rows.

        Args:
            ids: int32 (n, P), padded on the right.
            lengths: int32 (n,), the true lengths of the prompts, each at least 1.
            rows: int64 (n,), different row numbers.

        Returns:
            float32 (n, V), the logits after the last token of each prompt.
        """
