"""What answers: the model in this process (`src.serving.service`), or MindSpore Serving; both look the same."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.common.settings import GenerationConfig
from src.generate import TextCompletion
from src.tokenization import Tokenizer

Prompt = str | Sequence[int]
_SETTINGS = (
    "method",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "end_token",
    "stop",
    "seed",
)


class Backend(Protocol):
    """A model that many threads may ask at once.

    Args:
        tokenizer: The model's.
        end_token: At which its answers end.
        rows: Answers that are made at once.
        streams: Whether answers are shown as they are made, or only when whole.
    """

    tokenizer: Tokenizer
    end_token: int
    rows: int
    streams: bool

    def complete(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], config: GenerationConfig, likeliest: int
    ) -> Iterator[list[TextCompletion]]:
        """See `src.serving.service.TextService.complete`; also raises BackendError."""

    def score(self, tokens: Sequence[int], start: int = 1) -> Sequence[float]:
        """See `src.serving.service.TextService.score`; also raises BackendError."""

    def check(self) -> None:
        """Raises BackendError where nothing would answer."""


class ServingBackend:
    """MindSpore Serving by its REST interface.

    Args:
        address: Such as http://127.0.0.1:1500.
        tokenizer: The served model's.
        end_token, rows: The served model's.
        time_limit: Seconds to wait for an answer.
    """

    streams = False

    def __init__(
        self, address: str, tokenizer: Tokenizer, end_token: int, rows: int, time_limit: float = 120.0
    ) -> None:
        self.address, self.tokenizer, self.end_token, self.rows = address, tokenizer, end_token, rows
        self.time_limit = time_limit

    def complete(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], config: GenerationConfig, likeliest: int
    ) -> Iterator[list[TextCompletion]]:
        """One step: the whole answers."""
        if likeliest:
            raise InputError(
                "the likeliest tokens are not told by MindSpore Serving; ask for logprobs 0, or start the "
                "page with --backend local"
            )
        settings = {name: value for name, value in asdict(config).items() if name in _SETTINGS}
        settings |= {"max_generate_length": config.max_new_tokens, "return_scores": True}
        instances = [
            {"input_sentence" if isinstance(prompt, str) else "input_ids": prompt, "number": number} | settings
            for prompt, number in zip(prompts, numbers, strict=True)
        ]
        yield [
            TextCompletion(
                answer["output_ids"],
                sum(answer["log_probs"]),
                answer["finish_reason"],
                answer["log_probs"],
                text=answer["output_sentence"],
            )
            for answer in self._ask("predict", instances)
        ]

    def score(self, tokens: Sequence[int], start: int = 1) -> Sequence[float]:
        """Log-probabilities of tokens[start:]."""
        return self._ask("score", [{"input_ids": list(tokens), "start": start}])[0]["log_probs"]

    def check(self) -> None:
        """Raises BackendError where Serving does not answer."""
        self._open(f"{self.address}/health")

    def _ask(self, method: str, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        body = json.dumps({"instances": instances}).encode()
        return self._open(
            urllib.request.Request(
                f"{self.address}/model/pangu:{method}", data=body, headers={"Content-Type": "application/json"}
            )
        )["instances"]

    def _open(self, request: urllib.request.Request | str) -> dict[str, Any]:
        """Raises InputError, BusyError, TimeLimitError or BackendError, by the status of Serving's answer."""
        try:
            with urllib.request.urlopen(request, timeout=self.time_limit) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            told = json.loads(error.read() or b"{}").get("error", f"status {error.code}")
            kinds = {400: InputError, 422: InputError, 429: BusyError, 504: TimeLimitError}
            raise kinds.get(error.code, BackendError)(told) from error
        except TimeoutError as error:
            raise TimeLimitError(f"no answer within {self.time_limit:g} seconds") from error
        except (OSError, ValueError, KeyError) as error:
            raise BackendError(
                "MindSpore Serving does not answer; it may be starting anew: try again in some seconds"
            ) from error


DEFAULT_SERVER = "http://127.0.0.1:1500"
SECONDS = 3600  # for one answer: a server on a CPU may read a long text for minutes, after those of others
# What the servable's `predict` takes, of the settings of an answer.
SENT = (
    "method",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "end_token",
    "stop",
    "seed",
)


class Servable:
    """The methods of the servable `pangu`.

    Args:
        address: Of the REST interface, http://HOST:PORT.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise InputError(f"--server {address} is no address such as {DEFAULT_SERVER}")

    def call(self, method: str, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the server answers to each instance.

        Raises:
            InputError: It does not answer, or with an error.
        """
        request = urllib.request.Request(
            f"{self.address}/model/pangu:{method}",
            json.dumps({"instances": list(instances)}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                answer = reply.read()
        except urllib.error.HTTPError as error:
            answer = error.read() or str(error).encode()
        except OSError as error:
            raise InputError(
                f"--server {self.address} does not answer ({getattr(error, 'reason', error)}); start it: "
                "bash serving_increment/start_pangu_standalone.sh"
            ) from error
        return self._checked(method, answer, len(instances))

    def _checked(self, method: str, answer: bytes, number: int) -> list[dict[str, Any]]:
        try:
            found = json.loads(answer)
            instances = found["instances"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"--server {self.address} answers to {method}: {_shown(answer)}") from None
        bad = next((one for one in instances if not isinstance(one, dict) or "error_msg" in one), None)
        if bad is not None or len(instances) != number:
            raise InputError(f"--server {self.address} answers to {method}: {_shown(answer)}")
        return instances


def _shown(answer: bytes) -> str:
    return " ".join(answer[:300].decode(errors="replace").split()) or "nothing"
