"""Requests to score a text: which of its tokens need log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from src.common.errors import InputError


@dataclass(frozen=True)
class Request:
    """A text and the tokens of it that are scored.

    Args:
        tokens: Ids of the text. The last one is only a label, so a text may be one token longer than the position
            table.
        start: Index of the first scored token, at least 1: nothing predicts the first token of a text.

    Raises:
        ValueError: `start` is out of range.
    """

    tokens: Sequence[int]
    start: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.tokens):
            raise ValueError(f"start {self.start} must lie in 1 to {len(self.tokens) - 1}, the last of the tokens")


def check_scored(tokens: Sequence[int], start: int, seq_length: int, vocab_size: int) -> None:
    """Check a user's request for the log-probabilities of tokens[start:].

    Args:
        tokens: 2 to seq_length + 1 ids; the last one is only a label.
        start: Index of the first scored token, at least 1.
        seq_length: Rows of the model's position table.
        vocab_size: Ids of the model's vocabulary.

    Raises:
        InputError: A model cannot score this.
    """
    if not 2 <= len(tokens) <= seq_length + 1:
        raise InputError(f"a text of {len(tokens)} tokens can't be scored; it may have 2 to {seq_length + 1}")
    if not 1 <= start < len(tokens):
        raise InputError(f"start is {start}; of {len(tokens)} tokens it must lie in 1 to {len(tokens) - 1}")
    unknown = [token for token in tokens if not 0 <= token < vocab_size]
    if unknown:
        raise InputError(f"the text holds the id {unknown[0]}, outside the vocabulary of {vocab_size} ids")
