"""The backend that a page uses and what the page shows of it, and a way to follow an answer from asynchronous code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from src.common.errors import InputError, nearest
from src.serving.backends import Answer, Backend, TokenBackend
from src.serving.openai_client import OnlineModels

ONLINE_LONGEST = 4096  # tokens; a server does not say how long its models' answers may be


@dataclass(frozen=True)
class Engine:
    """A backend, and what a page must know of it.

    Args:
        backend: Answers the readers of the page.
        first_model: Model that is chosen when the page opens.
        longest: Most tokens that a reader may ask for.
        writes_markdown: Whether the page renders answers as Markdown, or shows them as they are.
    """

    backend: Backend
    first_model: str
    longest: int
    writes_markdown: bool


def local_engine(backend: TokenBackend) -> Engine:
    """Return the engine of a model on this machine."""
    return Engine(backend, backend.name, backend.seq_length - 1, writes_markdown=False)


def online_engine(api_base: str, api_key: str, first_model: str, time_limit: float) -> Engine:
    """Return the engine of an OpenAI-compatible server.

    Args:
        api_base: Address of the server up to /v1.
        api_key: Key of the server; empty if it wants none.
        first_model: Model that is chosen when the page opens; the first of all when empty.
        time_limit: Seconds to wait for each piece of an answer.

    Raises:
        InputError, BackendError, BusyError, TimeLimitError: The server does not answer, or has no such model.
    """
    online = OnlineModels(api_base, api_key, time_limit)
    names = online.model_list()
    if not names:
        raise InputError(f"{api_base} has no models")
    if first_model and first_model not in names:
        raise InputError(
            f"{api_base} has no model '{first_model}'{nearest(first_model, names)}; it has {', '.join(names)}"
        )
    return Engine(online, first_model or names[0], ONLINE_LONGEST, writes_markdown=True)


async def follow(begin: Callable[[], Iterator[Answer]]) -> AsyncIterator[Answer]:
    """Yield the steps of an answer without blocking the event loop.

    A slow reader misses some steps but never the last one. Closing this iterator ends the generation at its next step.

    Args:
        begin: Returns the iterator of an answer. A thread of its own calls it and reads the iterator.
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
        except Exception as error:  # raised again in the event loop
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
