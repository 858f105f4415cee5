"""The web server of a page. Neither the server nor the browser asks anything of other hosts."""

from __future__ import annotations

import logging
import socket

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.page import STYLE, THEME

# The browser refuses everything from other hosts, whatever a version of Gradio asks for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
)


class PageServer(uvicorn.Server):
    """Serves a page: `run(sockets=[...])` returns when it is interrupted.

    Args:
        blocks: The page.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        blocks.queue(default_concurrency_limit=None, api_open=False)  # the backend has its own queue
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        gr.mount_gradio_app(
            app,
            blocks,
            "/",
            footer_links=[],
            run_history=False,
            max_file_size=1,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            theme=THEME,
            css=STYLE,
        )
        app.add_middleware(_Guard)
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the server. Connections of open pages break then; that is not logged as an error."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


class _Guard:
    """ASGI middleware that sends POLICY with every response.

    Args:
        app: Application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_guarded)
