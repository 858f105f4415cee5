"""The client of MindSpore Serving's REST interface, and MindSpore Serving as a backend."""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import httpx

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.common.settings import GenerationConfig
from src.generate import TextCompletion
from src.inference.manifest import Manifest
from src.serving.backends import DEFAULT_SERVER, Prompt, TokenBackend, is_loopback
from src.tokenization import Tokenizer

_ERRORS = {400: InputError, 422: InputError, 429: BusyError, 504: TimeLimitError}
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
_SHOWN_CHARACTERS = 300


class UnreachableError(BackendError):
    """Nothing answers at the address."""


def generation_fields(config: GenerationConfig) -> dict[str, Any]:
    """Return the settings of an answer as fields of the method `predict`."""
    return {name: getattr(config, name) for name in _SETTINGS} | {"max_generate_length": config.max_new_tokens}


class ServingClient:
    """Calls the methods of the servable `pangu`. Many threads may use one client.

    Args:
        address: http://HOST:PORT of the REST interface.
        time_limit: Seconds to wait for an answer.
        api_key: API key; empty if the server wants none.

    Raises:
        InputError: `address` is not such an address.
    """

    def __init__(self, address: str, time_limit: float = 120.0, api_key: str = "") -> None:
        self.address, self.time_limit = address.rstrip("/"), time_limit
        try:
            url = httpx.URL(self.address)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"{address} is no address such as {DEFAULT_SERVER}")
        self._client = httpx.Client(
            timeout=time_limit,
            trust_env=not is_loopback(self.address),
            limits=httpx.Limits(max_connections=None),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        )

    def call(self, method: str, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send instances to a method and return the answer to each of them.

        Raises:
            InputError, BusyError, TimeLimitError: The server says so, by the status of its answer.
            BackendError: Another status, or an answer of another kind; UnreachableError if there is no answer.
        """
        response = self._request("POST", f"/model/pangu:{method}", json.dumps({"instances": list(instances)}).encode())
        try:
            answers = response.json()["instances"]
            fits = len(answers) == len(instances) and all(
                isinstance(answer, dict) and "error_msg" not in answer for answer in answers
            )
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise BackendError(_shown(response))
        return answers

    def check(self) -> None:
        """Raise BackendError, BusyError or TimeLimitError if the server would not answer."""
        self._request("GET", "/health")

    def _request(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        """Send a request; the one place where statuses and failures become this project's errors."""
        headers = {"Content-Type": "application/json"} if content else {}
        try:
            response = self._client.request(method, self.address + path, content=content, headers=headers)
        except httpx.ReadTimeout as error:
            raise TimeLimitError(f"no answer within {self.time_limit:g} seconds") from error
        except httpx.RequestError as error:
            raise UnreachableError(
                "MindSpore Serving does not answer; it may be restarting: try again in some seconds"
            ) from error
        if response.is_success:
            return response
        try:
            message = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            message = f"status {response.status_code}: {_shown(response)}"
        raise _ERRORS.get(response.status_code, BackendError)(message)


class ServingBackend(TokenBackend):
    """MindSpore Serving as a backend.

    Args:
        client: Client of the REST interface.
        tokenizer: Vocabulary of the served model.
        manifest: Manifest of the exported folder that is served.
    """

    streams = False

    def __init__(self, client: ServingClient, tokenizer: Tokenizer, manifest: Manifest) -> None:
        self.client, self.tokenizer = client, tokenizer
        self.end_token, self.rows, self.seq_length = manifest.end_token, manifest.rows, manifest.model.seq_length

    def complete(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        config: GenerationConfig,
        likeliest: int = 0,
        bias: Mapping[int, float] | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Generator[list[TextCompletion]]:
        """See `TokenBackend`. There is one step, with the complete answers."""
        if likeliest:
            raise InputError(
                "MindSpore Serving does not return the likeliest tokens; ask for logprobs 0, or start the page with "
                "--backend local"
            )
        if bias:
            raise InputError(
                "MindSpore Serving takes no logit_bias; leave it out, or start the page with --backend local"
            )
        settings = generation_fields(config) | {"return_scores": True}
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
            for answer in self.client.call("predict", instances)
        ]

    def score(self, tokens: Sequence[int], start: int = 1) -> Sequence[float]:
        """See `TokenBackend`."""
        return self.client.call("score", [{"input_ids": list(tokens), "start": start}])[0]["log_probs"]

    def check(self) -> None:
        """See `TokenBackend`."""
        self.client.check()


def _shown(response: httpx.Response) -> str:
    """Return the beginning of a response's text, in one line."""
    return " ".join(response.text[:_SHOWN_CHARACTERS].split()) or "nothing"
