"""One call of the generation loop: the checked job, its answers and its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        tokens: Ids of the answer, without the end token. Ids of a stop text are included.
        log_prob: Sum of the natural log-probabilities of `tokens`, and of the end token if it was generated. They come
            from the model's own distribution, before penalties, temperature, top_k and top_p.
        finish_reason: end (the end token was generated), stop (a stop text was generated), length (the limit was
            reached), or None while the answer grows.
        log_probs: Log-probability of each of `tokens`.
        likeliest: For each generated token, the end token included, the likeliest ids with their log-probabilities,
            best first. Empty if the job did not ask for them.
        end_log_prob: Log-probability of the end token; None if it was not generated.
    """

    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    finish_reason: Literal["end", "stop", "length"] | None = None
    log_probs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    end_log_prob: float | None = None

    def copy(self) -> Completion:
        """Return the answer in its present state."""
        return Completion(
            self.tokens.copy(),
            self.log_prob,
            self.finish_reason,
            self.log_probs.copy(),
            self.likeliest.copy(),
            self.end_log_prob,
        )


@dataclass
class Job:
    """The checked arguments of one call of the loop.

    `src.inference.loop.stream_tokens` explains the fields and the errors.

    Args:
        likeliest: How many of the likeliest ids to record at each token.
        bias: Numbers that are added to the logits of some ids before a token is chosen.
    """

    runtime: Runtime
    prompts: list[list[int]]
    config: GenerationConfig
    pad_token: int
    vocab_size: int
    is_stop: Callable[[list[int]], bool] | None
    numbers: Sequence[int] | None = None
    likeliest: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("there is no prompt; at least one is needed")
        if self.config.end_token >= self.vocab_size:
            raise InputError(
                f"generation.end_token {self.config.end_token} is outside the vocabulary of {self.vocab_size} ids"
            )
        unknown = [token for token in self.bias if not 0 <= token < self.vocab_size]
        if unknown:
            raise InputError(f"logit_bias has the id {unknown[0]}, outside the vocabulary of {self.vocab_size} ids")
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

    def part(self, first: int, size: int) -> Job:
        """Return the job of at most `size` prompts from number `first` on. They get the answers that they get here."""
        numbers = range(len(self.prompts)) if self.numbers is None else self.numbers
        own = slice(first, first + size)
        return replace(self, prompts=self.prompts[own], numbers=numbers[own])

    def no_answers(self) -> list[list[Completion]]:
        """Return the answers to each prompt before the first token."""
        return [[Completion() for _ in range(self.config.num_samples)] for _ in self.prompts]

    def limit(self, prompt: list[int]) -> int:
        """Return how many tokens the answer to a prompt may have."""
        return min(self.config.max_new_tokens, self.runtime.seq_length - len(prompt))

    def extend(self, answer: Completion, token: int, log_prob: float, limit: int) -> None:
        """Add a token to an answer, or end the answer.

        Args:
            answer: The answer so far.
            token: Id that was chosen.
            log_prob: Natural log-probability of the token.
            limit: Most tokens that the answer may have, see `limit`.
        """
        answer.log_prob += log_prob
        if token == self.config.end_token:
            answer.finish_reason, answer.end_log_prob = "end", log_prob
            return
        answer.tokens.append(token)
        answer.log_probs.append(log_prob)
        if self.is_stop and self.is_stop(answer.tokens):
            answer.finish_reason = "stop"
        elif len(answer.tokens) == limit:
            answer.finish_reason = "length"


class Batch:
    """The rows of a runtime during a job: `copies` rows for each prompt, one after the other."""

    def __init__(self, job: Job, copies: int) -> None:
        self.runtime, self.pad_token = job.runtime, job.pad_token
        self.prompts = [prompt for prompt in job.prompts for _ in range(copies)]
        self.lengths = np.array([len(prompt) for prompt in self.prompts], np.int32)
        self.capacity = min(job.runtime.seq_length, int(self.lengths.max()) + job.config.max_new_tokens)
        self.positions = self.lengths - 1  # position of the last token that each row has read

    def prefill(self) -> np.ndarray:
        """Read the prompts and return the logits after them, float32 (B, V)."""
        ids = np.full((len(self.prompts), self.lengths.max()), self.pad_token, np.int32)
        for row, prompt in zip(ids, self.prompts):
            row[: len(prompt)] = prompt
        return self.runtime.prefill(ids, self.lengths, self.capacity)

    def decode(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read one token in each of `rows`, and return the logits after them, float32 (n, V)."""
        self.positions[rows] += 1
        return self.runtime.decode(tokens.astype(np.int32), self.positions[rows], rows)

    def reorder(self, parents: np.ndarray) -> None:
        """Replace row i by a copy of row parents[i]; parents is int64 (B,)."""
        self.runtime.reorder(parents)
        self.positions = self.positions[parents]
