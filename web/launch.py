"""From the command line to a page that listens."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.common.cli import parse
from src.common.errors import BackendError, BusyError, InputError, TimeLimitError

if TYPE_CHECKING:
    from web.engine import Engine

QUICKSTART = "output/quickstart/run"


@dataclass
class PageConfig:
    """A page in the browser, over a model in this process or over any OpenAI-compatible server.

    Args:
        model: A model on this machine, of any kind that the web server opens too (docs/serving.md); the quickstart's
            run when empty. With --api_base, the name of the server's model that is chosen at first.
        tokenizer: Folder of vocab.model; may be left out where the model knows its own.
        api_base: Address of an OpenAI-compatible server, such as http://127.0.0.1:5000/v1, which answers instead of a
            model in this process.
        api_key: That the server wants; PANGU_API_KEY in the environment does the same.
        host: Address to listen on; 0.0.0.0 for every network: the page asks nobody who they are.
        port: Port to listen on.
        rows: Answers that are made at once, each with a cache of its own; an exported model knows its own number.
        time_limit: Seconds that an answer may take; of a server, each piece of it.
    """

    model: str = ""
    tokenizer: str = ""
    api_base: str = ""
    api_key: str = ""
    host: str = "127.0.0.1"
    port: int = 7860
    rows: int = 2
    time_limit: float = 600.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"--rows is {self.rows}; it must be at least 1")
        if self.time_limit <= 0:
            raise InputError(f"--time_limit is {self.time_limit}; it must be positive")
        if not 1 <= self.port <= 65535:
            raise InputError(f"--port is {self.port}; it must lie in 1 to 65535")
        if self.api_base and self.tokenizer:
            raise InputError("--tokenizer is for a model in this process; the server at --api_base has its own")
        if self.api_key and not self.api_base:
            raise InputError("--api_key is for a server; its address, --api_base, is missing")
        if not (self.api_base or self.model or os.path.exists(QUICKSTART)):
            raise InputError(
                f"no model: there is no {QUICKSTART} (bash scripts/run_quickstart.sh makes it); give "
                "--model FOLDER, or --api_base ADDRESS of a server"
            )


def open_page(page: str, program: str) -> None:
    """Parse, load, serve one of the pages: text or chat."""
    config = parse(PageConfig, program)
    with _bound(config.host, config.port) as place:
        engine = _open_engine(config)
        from web import chat_page, text_page
        from web.server import PageServer

        server = PageServer({"text": text_page, "chat": chat_page}[page].build(engine))
        print(f"the page: http://{config.host}:{config.port}", flush=True)
        server.run(sockets=[place])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address, before anything is loaded."""
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise InputError(
            f"{host}:{port} can't be listened on ({error.strerror}); another server may be there: --port takes another"
        ) from error
    return place


def _open_engine(config: PageConfig) -> Engine:
    from web.engine import local_engine, online_engine

    if config.api_base:
        key = config.api_key or os.environ.get("PANGU_API_KEY", "")
        try:
            return online_engine(config.api_base, key, config.model, config.time_limit)
        except (BackendError, BusyError, TimeLimitError) as error:
            raise InputError(str(error)) from error
    from src.serving.open_model import open_model

    return local_engine(
        open_model(config.model or QUICKSTART, config.tokenizer, config.rows, time_limit=config.time_limit)
    )
