"""The HTTP server of the page and of MindSpore Serving's front: waitress, which idle connections can't fill up."""

from __future__ import annotations

import socket
import time
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer

CONNECTIONS = 1000  # more, and the connections that have been idle for longest are closed
GRACE = 0.5  # seconds in which a connection is not idle: its request may not have been read yet
LARGEST_READ = 64 << 20  # bytes; a smaller body is read before it is refused, so that the sender gets the reason


class _Request(HTTPRequestParser):
    """A request that is answered alone: what was sent together with it is dropped, and its answer is the last one.

    Waitress itself answers all requests that arrive together, also when nobody reads the answers. HTTP lets a server
    close a connection after any answer, and the caller asks the rest again. Hardly any client sends ahead.
    """

    def received(self, data: bytes) -> int:
        """Take a part of a request, and return how many bytes are done with."""
        taken: int = super().received(data)
        if self.completed and not self.empty and data[taken:].strip(b"\r\n"):  # old clients end a body with CRLF
            self.headers["CONNECTION"] = "close"
            return len(data)
        return taken


class _Channel(HTTPChannel):
    """A connection. While there are nearly too many, each has one answer and makes room."""

    parser_class = _Request

    def service(self) -> None:
        """Answer the first request that waits here."""
        if self.server.is_crowded:
            self.requests[0].headers["CONNECTION"] = "close"
        super().service()


class HttpServer(TcpWSGIServer):
    """Serves a WSGI application: `run()` returns when it is interrupted.

    Waitress itself accepts nobody while it has its 100 connections, and closes an idle one after two minutes.

    Args:
        app: The application.
        place: Bound socket; see `src.serving.listening.bound`.
        threads: Requests that are worked on at once.
        connections: Connections that are kept at once.
        root_path: Path of the application at a proxy, such as /pangu. The proxy may keep or remove it in a request.
    """

    channel_class = _Channel

    def __init__(
        self, app: Any, place: socket.socket, threads: int, connections: int = CONNECTIONS, root_path: str = ""
    ) -> None:
        settings = Adjustments(
            ident=None,
            url_prefix=root_path,
            threads=threads,
            connection_limit=connections,
            backlog=connections,
            asyncore_use_poll=True,
            channel_request_lookahead=1,
            max_request_body_size=LARGEST_READ,
        )
        address = place.family, place.type, place.proto, place.getsockname()
        super().__init__(app, _sock=place, adj=settings, sockinfo=address, bind_socket=False)

    @property
    def is_crowded(self) -> bool:
        """Whether there are nearly too many connections."""
        return len(self._map) > 0.9 * self.adj.connection_limit

    def readable(self) -> bool:
        """Return whether a connection can be accepted. If there are nearly too many, make room for the next ones."""
        if self.is_crowded:
            since = time.time() - GRACE
            idle = [
                channel
                for channel in self.active_channels.values()
                if not channel.requests and channel.last_activity < since
            ]
            idle.sort(key=lambda channel: channel.last_activity)
            for channel in idle[: len(idle) // 10 + 1]:
                channel.will_close = True
        return super().readable()

    def handle_accept(self) -> None:
        """Accept the connections that wait. Waitress accepts one between two looks at all others."""
        for _ in range(self.adj.connection_limit // 20):
            before = len(self._map)
            super().handle_accept()
            if len(self._map) == before:
                return
