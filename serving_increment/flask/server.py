"""The page and the API: `python -m serving_increment.flask.server --model device0 --tokenizer DIR`. See `--help`."""

import logging
import os
from dataclasses import dataclass
from typing import Literal

from src.common.checks import at_least, require, whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.memory import freeze_objects
from src.serving.backends import DEFAULT_SERVER, TokenBackend
from src.serving.listening import bound
from src.serving.visitors import check_root_path, warn_if_open


@dataclass
class ServerConfig:
    """Serve the web page and the OpenAI-compatible API.

    Args:
        backend: local for a model in this process, serving for MindSpore Serving.
        model: With the local backend, a folder of export.py or src.cpu.quantize, a training run's output folder or
            a checkpoint. With serving, the exported folder that is served.
        tokenizer: Folder of vocab.model. It may be left out if the checkpoint or the quantised folder has its own.
        serving_address: Address of MindSpore Serving's REST interface.
        host: Address to listen on; 0.0.0.0 for every network, for which an API key is a good idea.
        port: Port to listen on.
        rows: Answers that are generated at once. An exported model has its own number.
        waiting_limit: Requests that may wait. More requests get status 429.
        time_limit: Seconds that a request may take.
        max_body_bytes: Size of the largest request.
        model_name: Name of the model in the API.
        api_key_file: File with an API key in its first line. Callers must send it as `Authorization: Bearer KEY`.
            PANGU_API_KEY in the environment does the same. MindSpore Serving gets the same key.
        allowed_hosts: Names by which clients call this server, with commas between them, besides localhost, the name of
            this machine and all IP addresses; * for every name.
        allowed_origins: Sites whose pages may use the API (CORS), such as https://example.org, with commas between
            them; * for all.
        root_path: Path of the page at a proxy, such as /pangu.
    """

    model: str
    backend: Literal["local", "serving"] = "local"
    tokenizer: str = ""
    serving_address: str = DEFAULT_SERVER
    host: str = "127.0.0.1"
    port: int = 5000
    rows: int = 8
    waiting_limit: int = 64
    time_limit: float = 120.0
    max_body_bytes: int = 1 << 20
    model_name: str = "pangu-alpha"
    api_key_file: str = ""
    allowed_hosts: str = ""
    allowed_origins: str = ""
    root_path: str = ""

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 16, self, "rows", "waiting_limit")
        at_least(1, self, "max_body_bytes")
        require(self.time_limit > 0, f"--time_limit is {self.time_limit}; it must be positive")
        require(1 <= self.port <= 65535, f"--port is {self.port}; it must lie in 1 to 65535")
        check_root_path(self.root_path)

    def api_key(self) -> str:
        """Return the API key, or an empty string if there is none.

        Raises:
            InputError: The file of the key cannot be read, or its first line is empty.
        """
        if not self.api_key_file:
            return os.environ.get("PANGU_API_KEY", "")
        try:
            with open(self.api_key_file, encoding="utf-8") as file:
                key = file.readline().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api_key_file {self.api_key_file} can't be read: {error}") from error
        if not key:
            raise InputError(f"--api_key_file {self.api_key_file} begins with an empty line; write the key there")
        return key


def open_backend(config: ServerConfig) -> TokenBackend:
    """Open the backend that the command line asks for.

    Raises:
        InputError: The model or the vocabulary is missing, or they do not fit.
    """
    if config.backend == "local":
        from src.serving.open_model import open_model

        return open_model(config.model, config.tokenizer, config.rows, config.waiting_limit, config.time_limit)
    from src.inference.manifest import Manifest
    from src.serving.mindspore_serving_client import ServingBackend, ServingClient

    manifest = Manifest.read_settings(config.model)
    manifest.require_graphs(config.model)
    client = ServingClient(config.serving_address, config.time_limit, config.api_key())
    return ServingBackend(client, manifest.load_tokenizer(config.tokenizer), manifest)


def main() -> None:
    """Open the backend and serve it until the program is interrupted."""
    config = parse(ServerConfig, "python -m serving_increment.flask.server")
    from serving_increment.flask.app import AppSettings, create_app
    from serving_increment.http_server import HttpServer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = AppSettings(
        config.model_name,
        config.api_key(),
        config.max_body_bytes,
        config.allowed_hosts,
        config.allowed_origins,
        config.host,
    )
    settings.visitors()  # report errors in them before a model is loaded
    with bound(config.host, config.port, "--port takes another") as place:
        warn_if_open(config.host, settings.api_key, "--api_key_file or PANGU_API_KEY sets one")
        backend = open_backend(config)
        # A thread for every request that runs or waits, and some for /health, /metrics and those who get a 429.
        threads = config.waiting_limit + backend.rows + 8
        server = HttpServer(create_app(backend, settings), place, threads, root_path=config.root_path)
        address = f"http://{config.host}:{config.port}"
        freeze_objects()  # else requests wait for the garbage collector
        print(f"the page: {address}    the API: {address}/v1", flush=True)
        server.run()


if __name__ == "__main__":
    run_program(main)
