"""Models behind an OpenAI-compatible server: this project's own, vLLM, llama.cpp's, a hosted one.

`OnlineModels` lists them and asks them; every failure comes as one of the project's own errors, in words.
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
    """The server wants another API key."""


class UnknownModelError(InputError):
    """The server has no such model."""


class OnlineModels:
    """The models of a server.

    Args:
        api_base: The server's address up to /v1.
        api_key: Empty where the server wants none.
        time_limit: Seconds to wait for each piece of an answer.

    Raises:
        InputError: The address is none, or the key.
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
        """The names of all models.

        Raises:
            KeyRefusedError, BackendError, ...: See `explained`.
        """
        try:
            with self.explained():
                return sorted(model.id for model in self._client.models.list())
        except UnknownModelError as error:  # of no model in particular: there is no such route
            raise self._foreign() from error

    def model_info(self, model: str) -> dict[str, Any]:
        """What the server tells of a model.

        Raises:
            UnknownModelError: It has none of that name.
        """
        try:
            with self.explained():
                return self._client.models.retrieve(model).to_dict()
        except UnknownModelError as error:
            names = self.model_list()
            raise UnknownModelError(
                f"{self.api_base} has no model '{model}'{nearest(model, names)}; it has {', '.join(names)}"
            ) from error

    def write(self, model: str, text: str, config: GenerationConfig) -> Iterator[Answer]:
        """Continue a text.

        Args:
            model: One of `model_list`.
            text: The beginning; not part of the answer.
            config: How to choose tokens; beams and several samples are not for a server.

        Raises:
            InputError, TooLongError, UnknownModelError, KeyRefusedError, BusyError, BackendError, TimeLimitError: From
                the iterator, see `explained`.
        """
        return self._answers(self._client.completions, config, model=model, prompt=text)

    def reply(self, model: str, turns: Sequence[Turn], config: GenerationConfig) -> Iterator[Answer]:
        """Answer in a chat; the server brings the turns into the form that its model knows. Otherwise as `write`."""
        return self._answers(
            self._client.chat.completions, config, model=model, messages=[turn._asdict() for turn in turns]
        )

    def _answers(self, route: Any, config: GenerationConfig, **asked: Any) -> Iterator[Answer]:
        answer = Answer("")
        asked |= _settings(config)
        with self.explained(), route.create(stream=True, **asked) as stream:
            if "text/event-stream" not in stream.response.headers.get("Content-Type", ""):
                raise self._foreign()
            for chunk in stream:
                for choice in chunk.choices:
                    piece = choice.text if hasattr(choice, "text") else choice.delta.content
                    answer = Answer(answer.text + (piece or ""), choice.finish_reason or answer.finish_reason)
                if chunk.choices:
                    yield answer
        if answer.finish_reason is None:
            raise BackendError(f"{self.api_base} broke off in the middle of the answer")

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn what the client raises into this project's errors.

        Raises:
            KeyRefusedError: Status 401 or 403.
            UnknownModelError: Status 404.
            TooLongError: Status 413, or the server's words say so.
            InputError: Another status below 500: the server tells what is wrong; or it speaks another protocol.
            BusyError, TimeLimitError: Status 429; 504, or no piece within the time limit.
            BackendError: It is not there, breaks off or fails.
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
        """By the status, which in the middle of a stream is a field of the error's body."""
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
    """A request's fields: only those that say something, since many servers refuse what OpenAI's API lacks."""
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
