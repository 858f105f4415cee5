"""The connections of a page's server. Idle, slow, greedy and too many ones are closed, so that they keep nobody out."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1000  # connections; more, and the one that has been idle for longest is closed
PATIENCE = 30.0  # seconds that a request's head may take, or a caller to read the end of an answer


class Connection(H11Protocol):
    """A connection. Uvicorn itself waits for ever for a request, and for a caller that reads no answer."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._idle_since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and no answer is made or its caller does not read it."""
        return not self.transport.is_closing() and self._waits_for_caller

    @property
    def _waits_for_caller(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request. If there are too many connections, close another one."""
        super().connection_made(transport)
        self._wait()
        others = [other for other in self.connections if isinstance(other, Connection) and other is not self]
        idle = [other for other in others if other.is_idle]
        if len(others) >= MOST and idle:
            min(idle, key=lambda other: other._idle_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what has arrived. The deadline stays until the head of a request is whole.

        A request that others were sent together with gets the last answer of its connection. Uvicorn itself answers all
        of them, also when nobody reads the answers. HTTP lets the caller ask the rest again.
        """
        before, was_whole = self.cycle, self.conn.their_state is h11.DONE
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._stop_waiting()
        more, _ = self.conn.trailing_data
        if more and self.conn.their_state is h11.DONE and not was_whole:
            self.cycle.scope["headers"].append(CLOSE_HEADER)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the caller to read."""
        self._wait()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on with the answer: the caller reads."""
        super().resume_writing()
        if not self._waits_for_caller:
            self._stop_waiting()

    def _wait(self) -> None:
        self._stop_waiting()
        self._idle_since = self.loop.time()
        self._deadline = self.loop.call_later(PATIENCE, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
