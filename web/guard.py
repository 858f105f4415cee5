"""ASGI middleware in front of Gradio. It lets through only the routes and the values that the pages need.

Gradio has routes that serve and take files, and events whose values name files of the server. The pages need none.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.common.checks import require
from src.serving.visitors import Visitors

# The browser refuses everything from other hosts, whatever a version of Gradio asks for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
)
READ = re.compile(
    r"/|/config/?|/theme\.css|/manifest\.json|/favicon\.ico|/robots\.txt|/(static|assets)/[^?]*|"
    r"/gradio_api/(queue/data|startup-events|heartbeat/\w+)"
)
MAX_BODY_BYTES = 4 << 20  # a long chat
Name = Annotated[str, Field(pattern=r"^\w{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    """A message of a chat. Gradio also knows files, components and options, which make the server open files."""

    role: Literal["user", "assistant"]
    content: str | list[_Part]
    metadata: None = None
    options: None = None


class _Example(_Strict):
    text: str


class _Selected(_Strict):
    index: int
    value: _Example


class _Event(_Strict):
    """The body of a request that starts, cancels or resets an event."""

    data: list[str | int | float | bool | None | list[_Message]] = []
    event_data: _Selected | None = None
    fn_index: int = 0
    trigger_id: int | None = None
    session_hash: Name = ""
    event_id: Name = ""


EVENTS = tuple(f"/gradio_api/{route}" for route in ("queue/join", "run/predict", "cancel", "reset"))


class Guard:
    """ASGI middleware that refuses what the pages do not need, and sends POLICY with every response.

    Args:
        app: Application behind it.
        events: Numbers of the page's events.
        visitors: Who may ask.
        root_path: Path of the page at a proxy. It is removed from a request that has it.
    """

    def __init__(self, app: ASGIApp, events: Collection[int], visitors: Visitors, root_path: str = "") -> None:
        self.app, self.events, self.visitors, self.root_path = app, events, visitors, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if self.root_path and scope.get("path", "").startswith(f"{self.root_path}/"):
            scope = scope | {"path": scope["path"].removeprefix(self.root_path), "raw_path": None}
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif reason := self.visitors.refusal(scope["method"], scope["path"], Headers(scope=scope).get):
            await _refuse(HTTPStatus.FORBIDDEN, reason)(scope, receive, send_guarded)
        elif scope["method"] in ("GET", "HEAD") and READ.fullmatch(scope["path"]):
            await self.app(scope, receive, send_guarded)
        elif scope["method"] == "POST" and scope["path"] in EVENTS:
            await self._event(scope, receive, send_guarded)
        else:
            await _refuse(HTTPStatus.NOT_FOUND, "the page has no such address")(scope, receive, send_guarded)

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the body of an event, and pass on what the check has read: no second parser reads it otherwise."""
        body = b""
        while len(body) <= MAX_BODY_BYTES:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        if len(body) > MAX_BODY_BYTES:
            await _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the text is too long")(scope, receive, send)
            return
        try:
            event = _Event.model_validate_json(body)
            require(event.fn_index in self.events, "no such event")
            body = event.model_dump_json(exclude_unset=True).encode()
        except ValueError:  # also pydantic's ValidationError
            told = "the page sends texts, numbers and messages of text; this is something else"
            await _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, told)(scope, receive, send)
            return
        headers = [
            (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")
        ]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_checked() -> Message:
            return unread.pop() if unread else await receive()

        await self.app(scope | {"headers": headers}, receive_checked, send)


def _refuse(status: HTTPStatus, reason: str) -> PlainTextResponse:
    return PlainTextResponse(reason, status)
