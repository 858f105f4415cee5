"""The command line of the pages: parse it, open the backend, serve the page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.common.checks import require, whole_numbers
from src.common.cli import parse
from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.serving.listening import bound
from src.serving.visitors import Visitors, check_root_path, warn_if_open

if TYPE_CHECKING:
    from web.engine import Engine

QUICKSTART = "output/quickstart/run"


@dataclass
class PageConfig:
    """A page in the browser, over a model in this process or over an OpenAI-compatible server.

    Args:
        model: A model on this machine, of any kind that the web server opens too (docs/serving.md). Default: the run
            of the quickstart. With --api_base, it is the name of the server's model that is chosen at first.
        tokenizer: Folder of vocab.model. It may be left out if the model has its own.
        api_base: Address of an OpenAI-compatible server, such as http://127.0.0.1:5000/v1, that answers instead of a
            model in this process.
        api_key: API key of the server. PANGU_API_KEY in the environment does the same.
        host: Address to listen on; 0.0.0.0 for every network. The page has no login.
        allowed_hosts: Names by which readers call this server, with commas between them, besides localhost, the name of
            this machine and all IP addresses; * for every name.
        port: Port to listen on.
        root_path: Path of the page at a proxy, such as /pangu.
        rows: Answers that are generated at once, each with its own KV cache. An exported model has its own number.
        time_limit: Seconds that an answer may take. With --api_base, seconds to wait for each piece of an answer.
    """

    model: str = ""
    tokenizer: str = ""
    api_base: str = ""
    api_key: str = ""
    host: str = "127.0.0.1"
    allowed_hosts: str = ""
    port: int = 7860
    root_path: str = ""
    rows: int = 2
    time_limit: float = 600.0

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 16, self, "rows")
        require(self.time_limit > 0, f"--time_limit is {self.time_limit}; it must be positive")
        require(1 <= self.port <= 65535, f"--port is {self.port}; it must lie in 1 to 65535")
        check_root_path(self.root_path)
        require(
            not (self.api_base and self.tokenizer),
            "--tokenizer is for a model in this process; the server at --api_base has its own",
        )
        require(self.api_base or not self.api_key, "--api_key is for a server; its address, --api_base, is missing")
        require(
            self.api_base or self.model or os.path.exists(QUICKSTART),
            f"no model: there is no {QUICKSTART} (bash scripts/run_quickstart.sh makes it); give "
            "--model FOLDER, or --api_base ADDRESS of a server",
        )


def open_page(page: str, program: str) -> None:
    """Parse the command line, open the backend, and serve a page until it is interrupted.

    Args:
        page: text or chat.
        program: Name of the program, for messages and --help.

    Raises:
        InputError: The port is taken, or the model or server cannot be used.
    """
    config = parse(PageConfig, program)
    visitors = Visitors(config.allowed_hosts, listens_on=config.host)
    with bound(config.host, config.port, "--port takes another") as place:
        warn_if_open(config.host, "", "the page has no login")
        engine = _open_engine(config)
        from web import chat_page, text_page
        from web.server import PageServer

        server = PageServer({"text": text_page, "chat": chat_page}[page].build(engine), visitors, config.root_path)
        print(f"the page: http://{config.host}:{config.port}", flush=True)
        server.run(sockets=[place])


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
