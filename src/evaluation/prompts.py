"""Examples of a benchmark as tokens: demonstrations before them, cut to what the model can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

from src.common.errors import InputError
from src.evaluation.tasks.task import Choice, Prompt, Task
from src.inference.score_request import Request
from src.tokenization import Tokenizer

Score = Literal["mean", "modelzoo"]


@dataclass(frozen=True)
class Demonstrations:
    """Examples that are shown before a question: drawn for each anew, from nothing but the seed and its number.

    Args:
        pool: Texts to draw from.
        shots: How many.
        seed: Of the draw.
    """

    pool: Sequence[str] = ()
    shots: int = 0
    seed: int = 0

    def of(self, number: int) -> list[str]:
        """Those of a question."""
        return Random(f"{self.seed}/shots/{number}").sample(self.pool, min(self.shots, len(self.pool)))


class Prompting:
    """Makes requests and prompts of one task's examples, and counts what did not fit.

    Args:
        task: The task.
        tokenizer: Of the model.
        seq_length: Rows of its position table.
        pad_token: Its id.
        score: mean: the perplexity of the scored tokens. modelzoo: as the ModelZoo does, which leaves the first scored
            token out, takes in a pad after the last one, and divides by all places of the position table.
        demonstrations: What is shown before each question.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        seq_length: int,
        pad_token: int,
        score: Score,
        demonstrations: Demonstrations,
    ):
        self.task, self.tokenizer, self.seq_length, self.pad_token = task, tokenizer, seq_length, pad_token
        self.score, self.demonstrations = score, demonstrations
        self.cut_texts = self.dropped_shots = 0

    def requests(self, number: int, example: Choice) -> list[Request]:
        """A request for each candidate.

        Raises:
            InputError: Nothing that is scored fits into the position table.
        """
        longest = max(len(self.tokenizer.encode(context + scored)) for context, scored in example.candidates)
        shots = self._shots(number, self.seq_length - longest)
        return [self._request(number, shots + context, scored) for context, scored in example.candidates]

    def prompt(self, number: int, example: Prompt) -> list[int]:
        """Ids to continue; what is too long loses its beginning."""
        room = self.seq_length - self.task.generation["max_new_tokens"]
        if room < 1:
            raise InputError(
                f"{self.task.title}'s answers have up to {self.task.generation['max_new_tokens']} tokens, "
                f"but the model's seq_length is {self.seq_length}"
            )
        shots = self._shots(number, room - len(self.tokenizer.encode(example.text)))
        tokens = self.tokenizer.encode(shots + example.text)
        if not tokens:
            raise InputError(f"example {number} of {self.task.title} has an empty prompt")
        limit, kept = self.task.prompt_limit or (room, room)
        if len(tokens) > min(limit, self.seq_length - 1):
            self.cut_texts += 1
            tokens = tokens[-min(kept, room) :]
        return tokens

    def remarks(self) -> list[str]:
        """What did not fit, a line each."""
        found = []
        if self.cut_texts:
            side = "beginning" if self.task.kind == "generation" or self.task.cut == "front" else "end"
            found.append(
                f"{self.cut_texts} texts are longer than the model's {self.seq_length} tokens and lost their {side}"
            )
        if self.dropped_shots:
            found.append(f"{self.dropped_shots} demonstrations did not fit before their questions and were left out")
        return found

    def value(self, log_probs: np.ndarray) -> float:
        """What is compared, the less the better: the mean loss, of which perplexity is the exponential."""
        total = -float(log_probs.sum(dtype=np.float64))
        return total / (self.seq_length if self.score == "modelzoo" else len(log_probs))

    def _shots(self, number: int, room: int) -> str:
        """The demonstrations, fewer where they don't all fit."""
        shots = [shot + self.task.separator for shot in self.demonstrations.of(number)]
        sizes = [len(self.tokenizer.encode(shot)) for shot in shots]
        kept = len(shots)
        while kept and sum(sizes[:kept]) > room:
            kept -= 1
        self.dropped_shots += len(shots) - kept
        return "".join(shots[:kept])

    def _request(self, number: int, context: str, scored: str) -> Request:
        before, tokens = self.tokenizer.encode(context), self.tokenizer.encode(context + scored)
        excess = max(0, len(tokens) - self.seq_length)
        self.cut_texts += excess > 0
        if self.score == "modelzoo":
            start, tokens = len(before) + 1, [*tokens[: self.seq_length], self.pad_token]
        elif self.task.cut == "front":
            start, tokens = max(1, _common(before, tokens) - excess), tokens[excess:]
        else:
            start, tokens = max(1, _common(before, tokens)), tokens[: self.seq_length]
        if start >= len(tokens):
            raise InputError(
                f"example {number} of {self.task.title} leaves nothing to score: its context has "
                f"{len(before)} tokens, the model reads {self.seq_length}; the scored text is "
                f"'{scored[:20]}'"
            )
        return Request(tokens, start)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with. A context's last token may merge with what follows it; then that is scored."""
    return next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
