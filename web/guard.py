"""ASGI middleware in front of Gradio. It lets through only the routes and the values that the pages need.

Gradio has routes that serve and take files, and events whose values name files of the server. The pages need none.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import gradio as gr
from gradio.components import Component
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
    r"/|/config/?|/theme\.css|/manifest\.json|/favicon\.ico|/robots\.txt|/(static|assets)/[\w./-]{1,200}|"
    r"/gradio_api/(startup-events|heartbeat/\w{1,64})",
    re.ASCII,
)
STREAM = "/gradio_api/queue/data"
MAX_BODY_BYTES = 4 << 20  # a long chat
BODY_SECONDS = 30.0  # that a body may take to arrive
NONE = type(None)
TYPES: dict[str, tuple[type, ...]] = {  # of a component's value
    "browserstate": (str, NONE),
    "chatbot": (list, NONE),
    "dataset": (int,),
    "dropdown": (str, NONE),
    "radio": (str,),
    "slider": (int, float),
    "state": (NONE,),
    "textbox": (str,),
}
Name = Annotated[str, Field(pattern=r"^\w{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    """A message of a chat. Gradio also knows files, components and options, which make the server open files."""

    role: Literal["user", "assistant"]
    content: list[_Part]  # Gradio takes no text in its place
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


JOIN = "/gradio_api/queue/join"
EVENTS = (JOIN, "/gradio_api/cancel", "/gradio_api/reset")


class Guard:
    """ASGI middleware that refuses what the pages do not need, and sends POLICY with every response.

    Args:
        app: Application behind it.
        blocks: The page.
        visitors: Who may ask.
        root_path: Path of the page at a proxy. It is removed from a request that has it.
    """

    def __init__(self, app: ASGIApp, blocks: gr.Blocks, visitors: Visitors, root_path: str = "") -> None:
        self.app, self.blocks, self.visitors, self.root_path = app, blocks, visitors, root_path

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
        elif reason := self._refusal(scope["method"], scope["path"], Headers(scope=scope)):
            await _refuse(HTTPStatus.FORBIDDEN, reason)(scope, receive, send_guarded)
        elif scope["method"] in ("GET", "HEAD") and self._may_read(scope["path"], scope["query_string"]):
            await self.app(scope, receive, send_guarded)
        elif scope["method"] == "POST" and scope["path"] in EVENTS:
            await self._event(scope, receive, send_guarded)
        else:
            await _refuse(HTTPStatus.NOT_FOUND, "the page has no such address")(scope, receive, send_guarded)

    def _refusal(self, method: str, path: str, headers: Headers) -> str:
        """Return why a request is refused. Gradio makes the page's own address from what a proxy says that it is."""
        for name in ("x-forwarded-host", "x-gradio-server"):
            for host in headers.get(name, "").split(","):
                if host.strip() and (unknown := self.visitors.unknown_host(host.strip())):
                    return unknown
        return self.visitors.refusal(method, path, headers.get)

    def _may_read(self, path: str, query: bytes) -> bool:
        """Return whether the page needs a path. For an unknown session, Gradio would begin an answer and then fail."""
        if path != STREAM:
            return READ.fullmatch(path) is not None
        match parse_qsl(query.decode(errors="replace")):
            case [("session_hash", session)]:
                return session in self.blocks._queue.pending_messages_per_session
        return False

    def _fits(self, event: _Event, path: str) -> bool:
        """Return whether an event exists, and its components take its values. The browser handles some events alone."""
        known = self.blocks.fns.get(event.fn_index)
        if known is None or path != JOIN:
            return known is not None
        page = self.blocks.state_holder.session_data.get(event.session_hash, {})
        return (
            known.fn is not None
            and (event.event_data is not None or all(name != "example_select" for _, name in known.targets))
            and len(known.inputs) == len(event.data)
            and all(
                _takes(page[block._id] if block._id in page and not block.stateful else block, value)
                for block, value in zip(known.inputs, event.data, strict=True)
            )
        )

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the body of an event, and pass on what the check has read: no second parser reads it otherwise."""
        try:
            body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            await _refuse(HTTPStatus.REQUEST_TIMEOUT, "the text did not arrive in time")(scope, receive, send)
            return
        if len(body) > MAX_BODY_BYTES:
            await _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the text is too long")(scope, receive, send)
            return
        try:
            event = _Event.model_validate_json(body)
            require(self._fits(event, scope["path"]), "no such event")
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


def _takes(component: Component, value: Any) -> bool:
    """Return whether a component takes a value. Gradio itself begins the event, and logs a trace at a wrong value."""
    kind = component.get_block_name()
    if type(value) not in TYPES[kind]:
        return False
    try:  # a choice that exists, a number in its range; `_Message` has checked a chat
        if kind != "chatbot":
            component.preprocess(value)
    except Exception:
        return False
    return True


async def _body(receive: Receive) -> bytes:
    """Return the body of a request, or the beginning of one that is too long."""
    body = bytearray()
    while len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    return bytes(body)


def _refuse(status: HTTPStatus, reason: str) -> PlainTextResponse:
    return PlainTextResponse(reason, status)
