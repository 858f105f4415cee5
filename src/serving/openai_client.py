"""The client of OpenAI-compatible servers, such as this project's own, vLLM, llama.cpp or a hosted one.

`OnlineModels` is a `Backend`. It turns every failure into one of this project's errors.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import openai

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError, TooLongError, nearest
from src.common.settings import GenerationConfig
from src.serving.backends import Answer, is_loopback
from src.serving.chat import Turn

_TOO_LONG = re.compile(r"context|too (long|large)|seq_length|maximum.*length", re.IGNORECASE)
_ERRORS = {413: TooLongError, 429: BusyError, 504: TimeLimitError}


class KeyRefusedError(InputError):
    """The server refuses the API key."""


class UnknownModelError(InputError):
    """The server has no such model."""


class OnlineModels:
    """The models of a server.

    Args:
        api_base: Address of the server up to /v1.
        api_key: API key; empty if the server wants none.
        time_limit: Seconds to wait for each piece of an answer.

    Raises:
        InputError: The address or the key is malformed.
    """

    def __init__(self, api_base: str, api_key: str = "", time_limit: float = 120.0) -> None:
        if not re.match(r"https?://[^/\s]+", api_base):
            raise InputError(f"--api_base '{api_base}' is no address; it looks like http://127.0.0.1:5000/v1")
        if not (api_key.isascii() and api_key.isprintable()):
            raise InputError("the API key (--api_key) holds characters that no key has; take letters, digits, signs")
        self.api_base, self.time_limit = api_base, time_limit
        limits = httpx2.Timeout(time_limit, connect=min(time_limit, 10.0))
        try:
            self._client = openai.OpenAI(
                base_url=api_base,
                api_key=api_key or "none",
                timeout=limits,
                max_retries=0,
                http_client=openai.DefaultHttpxClient(trust_env=not is_loopback(api_base)),
            )
        except httpx2.InvalidURL as error:
            raise InputError(f"--api_base '{api_base}' is no address: {error}") from error

    def model_list(self) -> list[str]:
        """Return the names of all models. It raises as `explained` says."""
        try:
            return sorted(self._listed())
        except UnknownModelError as error:  # no model was named, so the server has no such route
            raise self._foreign() from error

    def _listed(self) -> dict[str, dict[str, Any]]:
        with self.explained():
            return {model.id: model.to_dict() for model in self._client.models.list()}

    def model_info(self, model: str) -> dict[str, Any]:
        """Return what the server tells about a model.

        Raises:
            UnknownModelError: The server has no such model. Other errors are as `explained` says.
        """
        try:
            with self.explained():
                return self._client.models.retrieve(model).to_dict()
        except UnknownModelError as error:
            names = self.model_list()
            if model in names:  # some servers, such as vLLM, tell about a model only in their list
                return self._listed()[model]
            raise UnknownModelError(
                f"{self.api_base} has no model '{model}'{nearest(model, names)}; it has {', '.join(names)}"
            ) from error

    def write(self, model: str, text: str, config: GenerationConfig) -> Iterator[Answer]:
        """See `Backend`.

        Raises:
            InputError: `config` asks for beam search or several samples, which servers do not offer. Other errors are
                as `explained` says. The iterator raises all of them.
        """
        return self._answers(self._client.completions, config, model=model, prompt=text)

    def reply(self, model: str, turns: Sequence[Turn], config: GenerationConfig) -> Iterator[Answer]:
        """See `Backend`. The server applies the chat template of its model. It raises as `write`."""
        return self._answers(
            self._client.chat.completions, config, model=model, messages=[turn._asdict() for turn in turns]
        )

    def _answers(self, route: Any, config: GenerationConfig, **asked: Any) -> Iterator[Answer]:
        answer, is_begun = Answer(""), False
        asked |= _settings(config)
        with self.explained(), self._stream(route, asked) as stream:
            headers = stream.response.headers
            if "text/event-stream" not in headers.get("Content-Type", ""):
                raise self._foreign()
            for chunk in stream:
                for choice in chunk.choices:
                    piece = choice.text if hasattr(choice, "text") else choice.delta and choice.delta.content
                    answer = Answer(answer.text + (piece or ""), choice.finish_reason or answer.finish_reason)
                if chunk.choices:
                    is_begun = True
                    yield answer
        if answer.finish_reason is None:
            # Some servers tell no reason. A complete transfer is a complete answer; a closed connection may be a break.
            if not is_begun or not headers.keys() & {"content-length", "transfer-encoding"}:
                raise BackendError(f"{self.api_base} broke off in the middle of the answer")
            yield answer._replace(finish_reason="stop")

    def _stream(self, route: Any, asked: dict[str, Any]) -> Any:
        """Ask for a stream. Newer servers call the length of a chat's answer max_completion_tokens only."""
        try:
            return route.create(stream=True, **asked)
        except openai.BadRequestError as error:
            if "max_completion_tokens" not in str(error) or "messages" not in asked:
                raise
        asked = dict(asked)
        return route.create(stream=True, max_completion_tokens=asked.pop("max_tokens"), **asked)

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn what the client raises into this project's errors.

        Raises:
            KeyRefusedError: The status is 401 or 403.
            UnknownModelError: The status is 404.
            TooLongError: The status is 413, or the server's message says that the text is too long.
            InputError: The status is another one below 500, or the server does not speak OpenAI's protocol.
            BusyError: The status is 429.
            TimeLimitError: The status is 504, or no piece of the answer came within the time limit.
            BackendError: The server does not answer, breaks off or fails.
        """
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise TimeLimitError(f"{self.api_base}: no answer within {self.time_limit:g} seconds") from error
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            reason = error.__cause__ or error
            raise BackendError(f"{self.api_base} does not answer ({reason}); is the server running there?") from error
        except openai.APIError as error:
            raise self._told(error) from error
        except (AttributeError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise self._foreign() from error

    def _foreign(self) -> InputError:
        return InputError(f"{self.api_base} does not speak OpenAI's protocol; such an address mostly ends in /v1")

    def _told(self, error: openai.APIError) -> Exception:
        """Return the error for a status. In the middle of a stream the status is a field of the error's body."""
        body = error.body if isinstance(error.body, dict) else {}
        status = getattr(error, "status_code", None) or body.get("code")
        message = f"{self.api_base}: {body.get('message') or error.message}"
        if status in (401, 403):
            return KeyRefusedError(f"{message} (--api_key)")
        if status == 404:
            return UnknownModelError(message) if body else self._foreign()
        if status in _ERRORS:
            return _ERRORS[status](message)
        if isinstance(status, int) and status < 500:
            return (TooLongError if _TOO_LONG.search(message) else InputError)(message)
        return BackendError(message)


def _settings(config: GenerationConfig) -> dict[str, Any]:
    """Return the fields of a request. Neutral settings are left out: many servers refuse fields that OpenAI lacks."""
    if config.method == "beam" or config.num_samples > 1:
        raise InputError("beams and several samples can't be asked of a server; take method sample or greedy")
    neutral = GenerationConfig()
    beyond = {
        name: getattr(config, name)
        for name in ("top_k", "repetition_penalty")
        if getattr(config, name) != getattr(neutral, name)
    }
    fields = {
        name: getattr(config, name)
        for name in ("top_p", "frequency_penalty", "presence_penalty", "stop")
        if getattr(config, name) != getattr(neutral, name)
    }
    temperature = 0.0 if config.method == "greedy" else config.temperature
    return fields | {
        "temperature": temperature,
        "max_tokens": config.max_new_tokens,
        "seed": config.seed,
        "extra_body": beyond,
    }
