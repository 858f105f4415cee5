"""One call of the generation loop: the checked job, its answers and its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from src.common.errors import InputError, TooLongError
from src.common.settings import GenerationConfig
from src.inference.runtime import Runtime


@dataclass
class Completion:
    """An answer to a prompt.

    Args:
        tokens: Its ids, without the end token; those of a stop text are among them.
        log_prob: Sum of the natural log-probabilities of `tokens`, and of the end token where there was one, under the
            model's own distribution: without penalties, temperature, top_k or top_p.
        finish_reason: end (the end token came), stop (a stop text came), length (no token more was allowed), or None
            while the answer still grows.
        log_probs: Those of `tokens`, one by one.
        likeliest: At each of `tokens` the ids that the model found likeliest with their log-probabilities, the best
            first; only where they were asked for.
    """

    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    finish_reason: Literal["end", "stop", "length"] | None = None
    log_probs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)

    def copy(self) -> Completion:
        """The answer as it stands now."""
        return replace(
            self, tokens=self.tokens.copy(), log_probs=self.log_probs.copy(), likeliest=self.likeliest.copy()
        )


@dataclass
class Job:
    """One checked call of the loop; `stream_tokens` explains the fields.

    Raises:
        InputError: As `stream_tokens`.
    """

    runtime: Runtime
    prompts: list[list[int]]
    config: GenerationConfig
    pad_token: int
    vocab_size: int
    is_stop: Callable[[list[int]], bool] | None
    numbers: Sequence[int] | None = None
    likeliest: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("there is no prompt; at least one is needed")
        if self.config.end_token >= self.vocab_size:
            raise InputError(
                f"generation.end_token {self.config.end_token} is outside the vocabulary of {self.vocab_size} ids"
            )
        for number, prompt in enumerate(self.prompts, 1):
            name = f"prompt {number} of {len(self.prompts)}"
            if not prompt:
                raise InputError(f"{name} has no tokens (length 0); its length must be at least 1")
            if len(prompt) >= self.runtime.seq_length:
                raise TooLongError(
                    f"{name} has {len(prompt)} tokens; with the model's seq_length of "
                    f"{self.runtime.seq_length} it may have at most {self.runtime.seq_length - 1}"
                )
            unknown = [token for token in prompt if not 0 <= token < self.vocab_size]
            if unknown:
                raise InputError(f"{name} holds the id {unknown[0]}, outside the vocabulary of {self.vocab_size} ids")

    def limit(self, prompt: list[int]) -> int:
        """Most tokens that the answer to a prompt may have."""
        return min(self.config.max_new_tokens, self.runtime.seq_length - len(prompt))

    def extend(self, answer: Completion, token: int, log_prob: float, limit: int) -> None:
        """Add a token to an answer, or end the answer."""
        answer.log_prob += log_prob
        if token == self.config.end_token:
            answer.finish_reason = "end"
            return
        answer.tokens.append(token)
        answer.log_probs.append(log_prob)
        if self.is_stop and self.is_stop(answer.tokens):
            answer.finish_reason = "stop"
        elif len(answer.tokens) == limit:
            answer.finish_reason = "length"


class Batch:
    """The rows that the runtime works on: `copies` for each prompt, one after the other."""

    def __init__(self, job: Job, copies: int) -> None:
        self.runtime, self.pad_token = job.runtime, job.pad_token
        self.prompts = [prompt for prompt in job.prompts for _ in range(copies)]
        self.lengths = np.array([len(prompt) for prompt in self.prompts], np.int32)
        self.capacity = min(job.runtime.seq_length, int(self.lengths.max()) + job.config.max_new_tokens)
        self.positions = self.lengths - 1  # of the last token that each row has read

    def prefill(self) -> np.ndarray:
        """Read the prompts; float32 (B, V) logits."""
        ids = np.full((len(self.prompts), self.lengths.max()), self.pad_token, np.int32)
        for row, prompt in zip(ids, self.prompts):
            row[: len(prompt)] = prompt
        return self.runtime.prefill(ids, self.lengths, self.capacity)

    def decode(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read one token in each of `rows`; float32 (B, V) logits, of meaning in these rows only."""
        ids = np.full(len(self.prompts), self.pad_token, np.int32)
        ids[rows] = tokens
        self.positions[rows] += 1
        return self.runtime.decode(ids, self.positions.copy())

    def reorder(self, parents: np.ndarray) -> None:
        """Row i continues what was row parents[i]; int64 (B,)."""
        self.runtime.reorder(parents)
        self.positions = self.positions[parents]
