"""The formats by name, and the network of a checkpoint in any of them."""

from dataclasses import replace
from types import ModuleType

import yaml

from src.checkpoint.formats import hf, megatron, mindformers, mindspore, official, safetensors
from src.checkpoint.formats.parameters import Source, model_of
from src.common.errors import InputError
from src.common.model_sizes import mode_file, modes
from src.pangu_alpha_config import PanguAlphaConfig

FORMATS: dict[str, ModuleType] = {
    "mindspore": mindspore,
    "official": official,
    "mindformers": mindformers,
    "safetensors": safetensors,
    "megatron": megatron,
    "hf": hf,
}


def network_of(
    source: Source,
    num_heads: int | None = None,
    size: str = "",
    vocab_size: int | None = None,
    heads_needed: bool = True,
) -> PanguAlphaConfig:
    """The network of a checkpoint, which must be what a command line says of it.

    Args:
        num_heads: Where neither the checkpoint nor its size says.
        size: Of configs/, that it must be of.
        vocab_size: That it must have.
        heads_needed: Whether it must be known how many heads there are.

    Raises:
        InputError: It isn't.
    """
    model = model_of(source, num_heads)
    if size:
        named = yaml.safe_load(mode_file(size).read_text(encoding="utf-8"))["model"]
        for name in ("hidden_size", "num_layers"):
            if getattr(model, name) != named[name]:
                raise InputError(f"{source.path} has {name} {getattr(model, name)}, but --size {size} {named[name]}")
    if vocab_size not in (None, model.vocab_size):
        raise InputError(f"{source.path} has a vocabulary of {model.vocab_size}, not of {vocab_size} (--vocab_size)")
    heads = num_heads or source.settings.get("num_heads") or _known_heads(model)
    if heads is None and heads_needed:
        raise InputError(f"{source.path} doesn't say how many attention heads it has: give --num_heads")
    return replace(model, num_heads=heads or 1)


def _known_heads(model: PanguAlphaConfig) -> int | None:
    """Heads of the size of configs/ that has such layers."""
    for mode in modes():
        named = yaml.safe_load(mode_file(mode).read_text(encoding="utf-8"))["model"]
        if (named.get("hidden_size"), named.get("num_layers")) == (model.hidden_size, model.num_layers):
            return named.get("num_heads")
    return None
