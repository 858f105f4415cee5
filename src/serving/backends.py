"""What answers prompts: one protocol for a model in this process, MindSpore Serving and OpenAI-compatible servers.

`Backend` is what all of them can do: continue a text, answer a chat. `TokenBackend` is a backend with a known
vocabulary, which also scores texts and tells log-probabilities. The page, the API and the Gradio pages work over any
backend of their kind. MindSpore Serving's worker (Python 3.9) imports this file too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from typing import NamedTuple, Protocol, Union
from urllib.parse import urlsplit

import numpy as np

from src.common.errors import InputError, TooLongError
from src.common.settings import GenerationConfig
from src.generate import TextCompletion
from src.serving.chat import NEXT_QUESTION, Turn, dialogue, latest
from src.tokenization import Tokenizer

DEFAULT_SERVER = "http://127.0.0.1:1500"  # the REST interface of MindSpore Serving on this machine
# OpenAI's names for the reasons why an answer ended, by this project's.
FINISH_REASONS = {"end": "stop", "stop": "stop", "length": "length", None: None}
Prompt = Union[str, Sequence[int]]  # a text or its ids
TokenScore = tuple[int, float]  # an id and its natural log-probability


def is_loopback(address: str) -> bool:
    """Return whether a URL is one of this machine. Requests to it must not go to a proxy."""
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:
        return False


class Answer(NamedTuple):
    """An answer as far as it is generated.

    Attributes:
        text: The whole text so far, not only the new part.
        finish_reason: stop or length when the answer is complete; None before.
        forgotten: Number of turns of a chat that were left out because the model cannot read so much.
    """

    text: str
    finish_reason: str | None = None
    forgotten: int = 0


class Backend(Protocol):
    """Models that continue texts and answer chats. Many threads may call them at once.

    All methods raise KeyRefusedError, UnknownModelError, TooLongError, InputError, BusyError, TimeLimitError or
    BackendError.
    """

    def model_list(self) -> list[str]:
        """Return the names of all models."""

    def write(self, model: str, text: str, config: GenerationConfig) -> Iterator[Answer]:
        """Continue a text.

        Args:
            model: One of `model_list`.
            text: The text to continue; it is not part of the answer.
            config: How to choose tokens and when to end.
        """

    def reply(self, model: str, turns: Sequence[Turn], config: GenerationConfig) -> Iterator[Answer]:
        """Answer the last turn of a chat; see `write`."""


class TokenBackend(Backend, Protocol):
    """A backend of one model with a known vocabulary.

    Attributes:
        name: Name of the model.
        tokenizer: Vocabulary of the model.
        end_token: Id that ends an answer.
        seq_length: Longest text in tokens.
        rows: Answers that are generated at once.
        streams: Whether `complete` shows answers while they are generated, or only when they are complete.
    """

    name: str = "pangu-alpha"
    tokenizer: Tokenizer
    end_token: int
    seq_length: int
    rows: int
    streams: bool

    def complete(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        config: GenerationConfig,
        likeliest: int = 0,
        bias: Mapping[int, float] | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Generator[list[TextCompletion]]:
        """Continue texts or ids.

        Args:
            prompts: Texts or ids.
            numbers: Number of each prompt; sampling draws from the seed and this number.
            config: How to choose tokens and when to end.
            likeliest: How many of the likeliest ids to record at each token.
            bias: Numbers that are added to the logits of some ids before a token is chosen.
            is_wanted: Returns False when the caller has gone. A model in this process then drops the request.

        Returns:
            An iterator over steps. Each step gives one answer a prompt, as far as its text is settled.

        Raises:
            InputError, BusyError: At once, before the first step, or from the iterator.
            TimeLimitError, BackendError: From the iterator.
        """

    def score(self, tokens: Sequence[int], start: int = 1) -> Sequence[float] | np.ndarray:
        """Return the natural log-probabilities of tokens[start:], each given all tokens before it.

        Raises:
            InputError: The model cannot score this.
            BackendError: The model does not answer.
        """

    def score_likeliest(self, tokens: Sequence[int], count: int) -> tuple[Sequence[float], list[list[TokenScore]]]:
        """Return `score(tokens)`, and for each of tokens[1:] the `count` likeliest ids with their log-probabilities.

        Raises:
            InputError, BackendError: As `score`; or the model does not tell the likeliest ids of a prompt.
        """
        if count:
            raise InputError(
                "this kind of model does not tell the likeliest tokens of a prompt; ask for echo with logprobs 0, or "
                "serve the checkpoint or its quantised folder"
            )
        return list(map(float, self.score(tokens))), [[]] * (len(tokens) - 1)

    @property
    def longest_text(self) -> int:
        """Most characters of a text that the model can read. White space and others that no ids stand for count too."""
        return (self.seq_length + 1) * self.tokenizer.longest_piece  # a last token may be scored and not read

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text.

        Raises:
            TooLongError: The text has more than `longest_text` characters. To find its ids could take many seconds.
            InputError: The text holds half a surrogate pair.
        """
        if len(text) > self.longest_text:
            raise TooLongError(
                f"the text has {len(text)} characters; the model's seq_length of {self.seq_length} tokens can hold at "
                f"most {self.longest_text}"
            )
        return self.tokenizer.encode(text)

    def check(self) -> None:
        """Raise BackendError if requests would get no answer."""

    def model_list(self) -> list[str]:
        """Return the name of the only model."""
        return [self.name]

    def write(self, model: str, text: str, config: GenerationConfig) -> Iterator[Answer]:
        """See `Backend`."""
        return self._answers(text, config, forgotten=0)

    def reply(self, model: str, turns: Sequence[Turn], config: GenerationConfig) -> Iterator[Answer]:
        """See `Backend`. The chat becomes one text (`src.serving.chat`).

        The oldest turns are left out if the text would leave too little room for the answer: max_new_tokens, but at
        most a quarter of seq_length.
        """
        room = self.seq_length - min(config.max_new_tokens, self.seq_length // 4)

        def fits(some: Sequence[Turn]) -> bool:
            text = dialogue(some)
            return len(text) <= self.longest_text and len(self.encode(text)) <= room

        kept = latest(turns, fits)
        config = replace(config, stop=[*config.stop, NEXT_QUESTION])
        return self._answers(dialogue(kept), config, len(turns) - len(kept))

    def _answers(self, text: str, config: GenerationConfig, forgotten: int) -> Iterator[Answer]:
        with closing(self.complete([self.encode(text)], [0], config)) as steps:
            for [answer] in steps:
                yield Answer(answer.text, FINISH_REASONS[answer.finish_reason], forgotten)
