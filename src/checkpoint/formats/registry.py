"""All formats by name, and the network of a checkpoint in any format."""

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
    """Return the network of a checkpoint, and check it against a command line.

    Args:
        source: The checkpoint.
        num_heads: Number of attention heads; None: that of the checkpoint, or of the size in configs/ that fits.
        size: Model size in configs/ that the checkpoint must have; empty for any.
        vocab_size: Vocabulary that the checkpoint must have; None for any.
        heads_needed: Whether an unknown number of heads is an error. Otherwise it becomes 1.

    Raises:
        InputError: The checkpoint is incomplete or does not fit the arguments.
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
    """Return the number of heads of the size in configs/ with these layers, or None."""
    for mode in modes():
        named = yaml.safe_load(mode_file(mode).read_text(encoding="utf-8"))["model"]
        if (named.get("hidden_size"), named.get("num_layers")) == (model.hidden_size, model.num_layers):
            return named.get("num_heads")
    return None
