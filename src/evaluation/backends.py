"""Log-probabilities and answers for a benchmark: by a model in this process, or by MindSpore Serving."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.mindspore.load import OpenedCheckpoint
from src.inference.padding import bucket
from src.inference.runtime import Runtime
from src.inference.score_request import Request
from src.serving.mindspore_serving_client import ServingClient, UnreachableError, generation_fields
from src.tokenization import Tokenizer

SECONDS = 3600  # limit of one call: a server on a CPU can take minutes for a long text, and serves other clients too


class Scorer(Protocol):
    """Computes log-probabilities of texts."""

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Score groups of requests; see `src.inference.mindspore.scoring.TokenScorer.score`."""


class Answerer(Protocol):
    """Continues prompts."""

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """Answer prompts.

        Sampling depends on the number of a prompt only, not on the prompts beside it.

        Args:
            prompts: (number, ids) pairs.
            config: How tokens are chosen and when an answer ends.

        Returns:
            An iterator over (number, text) pairs in any order. A text ends before the first of the stop texts.
        """


class ModelAnswerer:
    """An `Answerer` that uses a model in this process.

    Args:
        runtime: The model as a runtime of the generation loop.
        tokenizer: The model's tokenizer.
        pad_token: Id of the padding.
        batch_size: Number of texts of seq_length tokens in a batch. Shorter texts make larger batches.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, pad_token: int, batch_size: int):
        self.runtime, self.tokenizer, self.pad_token, self.batch_size = runtime, tokenizer, pad_token, batch_size

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """Answer prompts, the short ones first; see `Answerer.answer`."""
        generator = TextGenerator(self.runtime, self.tokenizer, config, self.pad_token)
        waiting = sorted(prompts, key=lambda prompt: len(prompt[1]))
        while waiting:
            # Take as many prompts as fit beside the longest of them.
            rows = next(
                rows
                for rows in range(len(waiting), 0, -1)
                if rows == 1 or rows <= self._rows(len(waiting[rows - 1][1]) + config.max_new_tokens)
            )
            batch, waiting = waiting[:rows], waiting[rows:]
            answers = generator.generate([tokens for _, tokens in batch], [number for number, _ in batch])
            for (number, _), [answer] in zip(batch, answers, strict=True):
                yield number, answer.text

    def _rows(self, tokens: int) -> int:
        seq_length = self.runtime.seq_length
        return max(1, self.batch_size * seq_length // bucket(min(tokens, seq_length), seq_length))


def model_here(opened: OpenedCheckpoint, batch_size: int, margins: bool = False) -> tuple[Scorer, Answerer]:
    """Load the model of a checkpoint to score and to answer.

    Args:
        opened: The checkpoint.
        batch_size: Number of texts of model.seq_length tokens in a batch. Shorter texts make larger batches.
        margins: Compute also how far each token's logit is below the largest; see
            `src.inference.mindspore.scoring.TokenScorer`.

    Raises:
        InputError: The weights do not fit the model.
    """
    answerer = ModelAnswerer(opened.runtime, opened.tokenizer, opened.config.model.pad_token, batch_size)
    return opened.scorer(batch_size, margins), answerer


class Server:
    """MindSpore Serving at --server. Its failures become errors that name the flag and the remedy.

    It gets the API key PANGU_API_KEY of the environment.

    Args:
        address: http://HOST:PORT of the REST interface.

    Raises:
        InputError: `address` is not such an address.
    """

    def __init__(self, address: str):
        self.address = address
        try:
            self._client = ServingClient(address, SECONDS, os.environ.get("PANGU_API_KEY", ""))
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

    def identity(self) -> str:
        """Return the identity of the served model, which another model does not have; raise InputError as `call`."""
        [answer] = self.call("identity", [{}])
        if not isinstance(identity := answer.get("identity"), str):
            raise InputError(
                f"--server {self.address} does not say which model it serves; does it run another version?"
            )
        return identity


class ServerScorer:
    """A `Scorer` that asks a server. All texts of a group go in one call."""

    def __init__(self, server: Server):
        self._server = server

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Score groups of requests in order; see `src.inference.mindspore.scoring.TokenScorer.score`.

        Raises:
            InputError: The server does not answer, or answers with an error or another number of tokens.
        """
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
                f"{len(request.tokens) - request.start} tokens; does it run another version?"
            )
        return found


class ServerAnswerer:
    """An `Answerer` that asks a server. Each call has one prompt."""

    def __init__(self, server: Server):
        self._server = server

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """Answer prompts in order; see `Answerer.answer`.

        Raises:
            InputError: The server does not answer, or answers with an error.
        """
        for number, tokens in prompts:
            [answer] = self._server.call(
                "predict", [{"input_ids": tokens, "number": number} | generation_fields(config)]
            )
            yield number, answer["output_sentence"]
