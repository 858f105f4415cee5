"""What answers: a model in this process, or one behind an OpenAI-compatible server (`src.serving.openai_client`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from src.common.errors import InputError, nearest
from src.common.settings import GenerationConfig
from src.generate import TextCompletion
from src.serving.chat import NEXT_QUESTION, Turn, dialogue, latest
from src.serving.openai_client import Answer, OnlineModels

if TYPE_CHECKING:
    from src.serving.service import TextService  # MindSpore, which a page over a server does without

_REASONS = {"end": "stop", "stop": "stop", "length": "length", None: None}


class Engine(Protocol):
    """Answers many readers at once.

    Args:
        longest: Most tokens that may be asked for.
        first_model: The one that is chosen at first.
        writes_markdown: Whether its answers are to be shown as Markdown, or as they are.
    """

    longest: int
    first_model: str
    writes_markdown: bool

    def model_list(self) -> list[str]:
        """The names of its models; raises what `src.serving.openai_client.OnlineModels.explained` tells."""

    def write(self, model: str, text: str, config: GenerationConfig) -> Iterator[Answer]:
        """Continue a text; raises InputError, BusyError, TimeLimitError or BackendError."""

    def reply(self, model: str, turns: Sequence[Turn], config: GenerationConfig) -> Iterator[Answer]:
        """Answer in a chat; raises as `write`."""


class LocalEngine:
    """A model in this process.

    Args:
        service: The model.
        path: Where it came from; also its name.
    """

    writes_markdown = False

    def __init__(self, service: TextService, path: str) -> None:
        self.service, self.first_model = service, path
        self.longest = service.batch.runtime.seq_length - 1

    def model_list(self) -> list[str]:
        """The one."""
        return [self.first_model]

    def write(self, model: str, text: str, config: GenerationConfig) -> Iterator[Answer]:
        """Continue a text."""
        return self._answers(text, config, 0)

    def reply(self, model: str, turns: Sequence[Turn], config: GenerationConfig) -> Iterator[Answer]:
        """Answer in a chat: the latest turns that leave room for the answer, at most a quarter of all, as one text."""
        length = self.service.batch.runtime.seq_length
        room = length - min(config.max_new_tokens, length // 4)
        kept = latest(turns, lambda some: len(self.service.tokenizer.encode(dialogue(some))) <= room)
        config = replace(config, stop=[*config.stop, NEXT_QUESTION])
        return self._answers(dialogue(kept), config, len(turns) - len(kept))

    def _answers(self, text: str, config: GenerationConfig, forgotten: int) -> Iterator[Answer]:
        def answer(completion: TextCompletion) -> Answer:
            return Answer(completion.text, _REASONS[completion.finish_reason], forgotten)

        with closing(self.service.complete([text], [0], config)) as steps:
            for [completion] in steps:
                yield answer(completion)


class RemoteEngine(OnlineModels):
    """Models of a server; first_model may be empty for any.

    Raises:
        InputError, BackendError: The server does not answer, or has no such model.
    """

    longest = 4096
    writes_markdown = True

    def __init__(self, api_base: str, api_key: str, first_model: str, time_limit: float) -> None:
        super().__init__(api_base, api_key, time_limit)
        names = self.model_list()
        if not names:
            raise InputError(f"{api_base} has no models")
        if first_model and first_model not in names:
            raise InputError(
                f"{api_base} has no model '{first_model}'{nearest(first_model, names)}; it has {', '.join(names)}"
            )
        self.first_model = first_model or names[0]


async def follow(begin: Callable[[], Iterator[Answer]]) -> AsyncIterator[Answer]:
    """An answer as it is made, without keeping others waiting; a slow reader misses some steps, never the last. When
    this iterator is closed, the making ends with its next step.

    Args:
        begin: Makes the answer's iterator; it is called, and the iterator asked, in a thread of their own.
    """
    loop, news, closed = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def tell(item: Answer | Exception | None) -> None:
        if not closed.is_set():
            loop.call_soon_threadsafe(news.put_nowait, item)

    def work() -> None:
        try:
            with closing(begin()) as steps:
                for step in steps:
                    tell(step)
                    if closed.is_set():
                        return
        except Exception as error:  # raised where the answer is read
            tell(error)
        else:
            tell(None)

    threading.Thread(target=work, name="answer", daemon=True).start()
    try:
        while True:
            items = [await news.get()]
            while not news.empty():
                items.append(news.get_nowait())
            for step in [item for item in items if isinstance(item, Answer)][-1:]:
                yield step
            if isinstance(items[-1], Exception):
                raise items[-1]
            if items[-1] is None:
                return
    finally:
        closed.set()
