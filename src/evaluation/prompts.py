"""Turn examples of a benchmark into tokens: add demonstrations, and cut texts to the length that the model reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    """Examples with their answers that are shown before a question.

    They are drawn for each question from the seed and the question's number, so other questions do not change them.

    Args:
        pool: Texts to draw from.
        shots: Number of demonstrations before a question.
        seed: Seed of the draw.
    """

    pool: Sequence[str] = ()
    shots: int = 0
    seed: int = 0

    def of(self, number: int) -> list[str]:
        """Draw the demonstrations of a question by its number."""
        return Random(f"{self.seed}/shots/{number}").sample(self.pool, min(self.shots, len(self.pool)))


class Prompting:
    """Turns examples of one task into requests and prompts, and counts what did not fit.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        seq_length: Number of tokens that the model reads.
        pad_token: Id of the padding.
        score: mean: the mean loss of the scored tokens. modelzoo: the ModelZoo's score, which leaves out the first
            scored token, adds a pad token after the last one, and divides the sum by seq_length.
        demonstrations: Demonstrations before each question.
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
        """Make a request for each candidate of a choice.

        Raises:
            InputError: The context leaves no room for the scored text.
        """
        longest = max(len(self.tokenizer.encode(context + scored)) for context, scored in example.candidates)
        shots = self._shots(number, self.seq_length - longest)
        return [self._request(number, shots + context, scored) for context, scored in example.candidates]

    def prompt(self, number: int, example: Prompt) -> list[int]:
        """Return the ids of a prompt. A text that is too long loses its beginning.

        Raises:
            InputError: The longest answer leaves no room for a prompt, or the prompt is empty.
        """
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

    def digest(self, number: int, example: Choice | Prompt) -> str:
        """Return a digest of an example, of its demonstrations and of what the task adds to them and cuts off."""
        task = self.task
        told = [asdict(example), self.demonstrations.of(number), task.separator, task.cut, task.prompt_limit]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def remarks(self) -> list[str]:
        """Return a line for each kind of text that did not fit."""
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
        """Return the score of a candidate: the mean loss, the logarithm of the perplexity. The lowest score wins."""
        total = -float(log_probs.sum(dtype=np.float64))
        return total / (self.seq_length if self.score == "modelzoo" else len(log_probs))

    def _shots(self, number: int, room: int) -> str:
        """Join as many of the demonstrations as fit into `room` tokens."""
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
            start, tokens = max(1, common_beginning(before, tokens) - excess), tokens[excess:]
        else:
            start, tokens = max(1, common_beginning(before, tokens)), tokens[: self.seq_length]
        if start >= len(tokens):
            raise InputError(
                f"example {number} of {self.task.title} leaves nothing to score: its context has "
                f"{len(before)} tokens, the model reads {self.seq_length}; the scored text is "
                f"'{scored[:20]}'"
            )
        return Request(tokens, start)


def common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens that both texts begin with.

    The context's last token can merge with the text after it. The merged token is then scored.
    """
    return next(
        (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )
