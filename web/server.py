"""The web server of a page. Neither the server nor the browser asks anything of other hosts."""

from __future__ import annotations

import logging
import socket

import gradio as gr
import uvicorn
from fastapi import FastAPI

from src.serving.visitors import Visitors
from web.connections import Connection
from web.guard import Guard
from web.page import STYLE, THEME

SESSIONS = 256  # open pages whose state is kept, each about 200 KB; an older one loses what *undo* needs


class PageServer(uvicorn.Server):
    """Serves a page: `run(sockets=[...])` returns when it is interrupted.

    Args:
        blocks: The page.
        visitors: Who may ask.
        root_path: Path of the page at a proxy, such as /pangu. The proxy may keep or remove it in a request.
    """

    def __init__(self, blocks: gr.Blocks, visitors: Visitors, root_path: str = "") -> None:
        blocks.state_session_capacity = SESSIONS
        for event in blocks.fns.values():
            event.queue = event.fn is not None or event.queue  # so that the guard needs to let no direct calls through
        blocks.queue(default_concurrency_limit=None, api_open=False)  # the backend has its own queue
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        gr.mount_gradio_app(
            app,
            blocks,
            "/",
            root_path=root_path or None,
            footer_links=[],
            run_history=False,
            max_file_size=1,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            theme=THEME,
            css=STYLE,
        )
        blocks.has_launched = True  # a mounted page never sets it, and Gradio then takes any file for an uploaded one
        app.add_middleware(Guard, blocks=blocks, visitors=visitors, root_path=root_path)
        super().__init__(uvicorn.Config(app, http=Connection, log_level="warning", timeout_graceful_shutdown=1))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the server. Connections of open pages break then; that is not logged as an error."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
