"""From the command line to a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.inference.manifest import Manifest
from src.serving.backends import Backend, ServingBackend
from src.serving.open_model import open_model

if TYPE_CHECKING:
    from serving_increment.flask.server import ServerConfig


def open_backend(config: ServerConfig) -> Backend:
    """The backend that a command line asks for, ready to answer.

    Raises:
        InputError: The model or the vocabulary is not there, or they don't fit.
    """
    if config.backend == "serving":
        manifest = Manifest.read_settings(config.model)
        manifest.require_graphs(config.model)
        tokenizer = manifest.load_tokenizer(config.tokenizer)
        return ServingBackend(config.serving_address, tokenizer, manifest.end_token, manifest.rows, config.time_limit)
    return open_model(config.model, config.tokenizer, config.rows, config.waiting_limit, config.time_limit)
