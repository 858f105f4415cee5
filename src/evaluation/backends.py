"""What scores and answers the questions of a benchmark: a model here, or a server's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.inference.loop import generate_tokens
from src.inference.mindspore.load import OpenedCheckpoint
from src.inference.padding import bucket
from src.inference.runtime import Runtime
from src.inference.score_request import Request
from src.serving.backends import SENT, Servable
from src.tokenization import Tokenizer


class Scorer(Protocol):
    """Where log-probabilities come from: a model here, or a server's."""

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """See `src.inference.mindspore.scoring.TokenScorer`."""


class Answerer(Protocol):
    """Where answers come from: a model here, or a server's."""

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """The answers to numbered prompts, each up to the first of the stop texts, in any order.

        What is drawn for an answer depends on its number alone.
        """


class ModelAnswerer:
    """Continues prompts with a model.

    Args:
        runtime: The model.
        tokenizer: Of the model.
        pad_token: Its id.
        batch_size: Texts as long as the position table that are continued at once, as for `TokenScorer`.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, pad_token: int, batch_size: int):
        self.runtime, self.tokenizer, self.pad_token, self.batch_size = runtime, tokenizer, pad_token, batch_size

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """See `Answerer`; those to short prompts come first."""
        waiting = sorted(prompts, key=lambda prompt: len(prompt[1]))
        while waiting:
            # Rows as the longest of the batch allows, so that as many fit as were counted on.
            rows = next(
                rows
                for rows in range(len(waiting), 0, -1)
                if rows == 1 or rows <= self._rows(len(waiting[rows - 1][1]) + config.max_new_tokens)
            )
            batch, waiting = waiting[:rows], waiting[rows:]
            answers = generate_tokens(
                self.runtime,
                [tokens for _, tokens in batch],
                config,
                self.pad_token,
                self.tokenizer.vocab_size,
                self._stopper(config.stop),
                [number for number, _ in batch],
            )
            for (number, _), [answer] in zip(batch, answers, strict=True):
                text = self.tokenizer.decode(answer.tokens)
                yield number, text[: min((text.find(stop) for stop in config.stop if stop in text), default=len(text))]

    def _rows(self, tokens: int) -> int:
        seq_length = self.runtime.seq_length
        return max(1, self.batch_size * seq_length // bucket(min(tokens, seq_length), seq_length))

    def _stopper(self, stops: Sequence[str]) -> Callable[[list[int]], bool] | None:
        if not stops:
            return None
        return lambda tokens: any(stop in self.tokenizer.decode(tokens) for stop in stops)


def model_here(opened: OpenedCheckpoint, batch_size: int, margins: bool = False) -> tuple[Scorer, Answerer]:
    """Load the model of a checkpoint, to score and to answer.

    Args:
        opened: The checkpoint.
        batch_size: Texts of model.seq_length tokens that are computed at once; of shorter texts more.
        margins: See `src.inference.mindspore.scoring.TokenScorer`.

    Raises:
        InputError: The weights do not fit the model.
    """
    answerer = ModelAnswerer(opened.runtime, opened.tokenizer, opened.config.model.pad_token, batch_size)
    return opened.scorer(batch_size, margins), answerer


def model_of_server(address: str) -> tuple[Scorer, Answerer]:
    """Both by a running server.

    Raises:
        InputError: That is no address.
    """
    servable = Servable(address)
    return ServerScorer(servable), ServerAnswerer(servable)


class ServerScorer:
    """An `Scorer` by a server. The texts of a group go in one call."""

    def __init__(self, servable: Servable):
        self._servable = servable

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """See `src.inference.mindspore.scoring.TokenScorer`."""
        for number, group in enumerate(groups):
            answers = self._servable.call(
                "score", [{"input_ids": list(map(int, request.tokens)), "start": request.start} for request in group]
            )
            yield number, [self._log_probs(request, answer) for request, answer in zip(group, answers, strict=True)]

    def _log_probs(self, request: Request, answer: dict[str, Any]) -> np.ndarray:
        found = np.asarray(answer.get("log_probs", ()), np.float32).reshape(-1)
        if len(found) != len(request.tokens) - request.start:
            raise InputError(
                f"--server {self._servable.address} answers to score: {len(found)} log_probs for "
                f"{len(request.tokens) - request.start} tokens; is it another version's servable?"
            )
        return found


class ServerAnswerer:
    """An `Answerer` by a server, one prompt a call."""

    def __init__(self, servable: Servable):
        self._servable = servable

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """See `Answerer`."""
        settings = {name: getattr(config, name) for name in SENT}
        for number, tokens in prompts:
            [answer] = self._servable.call(
                "predict",
                [{"input_ids": tokens, "max_generate_length": config.max_new_tokens, "number": number, **settings}],
            )
            yield number, answer["output_sentence"]
