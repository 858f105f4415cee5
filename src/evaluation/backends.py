"""What scores and answers the questions of a benchmark: a model here, or a server's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.common.settings import GenerationConfig
from src.inference.loop import generate_tokens
from src.inference.mindspore.load import OpenedCheckpoint
from src.inference.padding import bucket
from src.inference.runtime import Runtime
from src.inference.score_request import Request
from src.serving.mindspore_serving_client import ServingClient, UnreachableError, generation_fields
from src.tokenization import Tokenizer

SECONDS = 3600  # for one answer: a server on a CPU may read a long text for minutes, after those of others


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
    server = Server(address)
    return ServerScorer(server), ServerAnswerer(server)


class Server:
    """MindSpore Serving at --server. Its failures become errors that name the flag and the remedy.

    Args:
        address: http://HOST:PORT of the REST interface.

    Raises:
        InputError: `address` is not such an address.
    """

    def __init__(self, address: str):
        self.address = address
        try:
            self._client = ServingClient(address, SECONDS)
        except InputError as error:
            raise InputError(f"--server {error}") from error

    def call(self, method: str, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send instances to a method and return the answer to each of them.

        Raises:
            InputError: The server does not answer, or answers with an error.
        """
        try:
            return self._client.call(method, instances)
        except UnreachableError as error:
            raise InputError(
                f"--server {self.address} does not answer ({error.__cause__}); start it: "
                "bash serving_increment/start_pangu_standalone.sh"
            ) from error
        except (InputError, BackendError, BusyError, TimeLimitError) as error:
            raise InputError(f"--server {self.address} answers to {method}: {error}") from error


class ServerScorer:
    """An `Scorer` by a server. The texts of a group go in one call."""

    def __init__(self, server: Server):
        self._server = server

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """See `src.inference.mindspore.scoring.TokenScorer`."""
        for number, group in enumerate(groups):
            answers = self._server.call(
                "score", [{"input_ids": list(map(int, request.tokens)), "start": request.start} for request in group]
            )
            yield number, [self._log_probs(request, answer) for request, answer in zip(group, answers, strict=True)]

    def _log_probs(self, request: Request, answer: dict[str, Any]) -> np.ndarray:
        found = np.asarray(answer.get("log_probs", ()), np.float32).reshape(-1)
        if len(found) != len(request.tokens) - request.start:
            raise InputError(
                f"--server {self._server.address} answers to score: {len(found)} log_probs for "
                f"{len(request.tokens) - request.start} tokens; is it another version's servable?"
            )
        return found


class ServerAnswerer:
    """An `Answerer` by a server, one prompt a call."""

    def __init__(self, server: Server):
        self._server = server

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """See `Answerer`."""
        for number, tokens in prompts:
            [answer] = self._server.call(
                "predict", [{"input_ids": tokens, "number": number} | generation_fields(config)]
            )
            yield number, answer["output_sentence"]
