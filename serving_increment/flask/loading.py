"""From the command line to a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving_increment.flask.backends import Backend, ServingBackend
from src.errors import InputError
from src.mindir.manifest import Manifest
from src.pangu_alpha_config import ParallelConfig
from src.service import TextService, is_exported, is_quantized, open_checkpoint, open_exported, open_quantized

if TYPE_CHECKING:
    from serving_increment.flask.server import ServerConfig


def open_backend(config: ServerConfig) -> Backend:
    """The backend that a command line asks for, ready to answer.

    Raises:
        InputError: The model or the vocabulary is not there, or they don't fit.
    """
    if is_exported(config.model) and not config.tokenizer:
        raise InputError("--tokenizer is not given: the folder of the vocab.model that the model was trained with")
    if config.backend == "serving":
        manifest = Manifest.read_settings(config.model)
        manifest.require_graphs(config.model)
        tokenizer = manifest.load_tokenizer(config.tokenizer)
        return ServingBackend(config.serving_address, tokenizer, manifest.end_token, manifest.rows,
                              config.time_limit)
    service = _open_service(config)
    print(f"{config.model}: ready to answer after {service.warm_up():.1f} s", flush=True)
    return service


def _open_service(config: ServerConfig) -> TextService:
    """The model in this process. A quantised one needs no MindSpore, which takes seconds to import."""
    limits = config.waiting_limit, config.time_limit
    if is_quantized(config.model):
        return open_quantized(config.model, config.tokenizer, config.rows, *limits)
    from src.device import prepare_device

    prepare_device(ParallelConfig())
    if is_exported(config.model):
        return open_exported(config.model, config.tokenizer, *limits)
    return open_checkpoint(config.model, config.tokenizer, config.rows, *limits)
