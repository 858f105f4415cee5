"""From the command line to a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving_increment.flask.backends import Backend, ServingBackend
from src.device import prepare_device
from src.errors import InputError
from src.mindir.manifest import Manifest
from src.pangu_alpha_config import ParallelConfig
from src.service import is_exported, open_checkpoint, open_exported
from src.tokenization import load_tokenizer

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
        tokenizer = load_tokenizer(manifest.tokenizer, config.tokenizer)
        manifest.check_vocabulary(config.tokenizer, tokenizer.vocab_size)
        return ServingBackend(config.serving_address, tokenizer, manifest.end_token, manifest.rows,
                              config.time_limit)
    prepare_device(ParallelConfig())
    limits = config.waiting_limit, config.time_limit
    if is_exported(config.model):
        service = open_exported(config.model, config.tokenizer, *limits)
    else:
        service = open_checkpoint(config.model, config.tokenizer, config.rows, *limits)
    print(f"{config.model}: compiled in {service.warm_up():.1f} s", flush=True)
    return service
