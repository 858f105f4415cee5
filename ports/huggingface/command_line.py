"""What the command lines of `generate` and `train` share: their errors, the model's settings and its vocabulary."""

import argparse
import json
from pathlib import Path
from typing import Any

from src.common.errors import InputError, Parser
from src.common.vocabulary import check_vocabulary

# Flags of the model's shape, and their help.
SHAPE = {
    "num_layers": "layers without the query layer (31 for 2.6B)",
    "hidden_size": "hidden size",
    "num_attention_heads": "attention heads",
    "max_position_embeddings": "positions",
}
_CONVERT = "`python -m src.checkpoint.convert --to hf --from {} --checkpoint {} --output FOLDER` writes such a folder"


def flag(name: str) -> str:
    """Return the flag of an argument."""
    return "--" + (name if name.startswith("top_") else name.replace("_", "-"))


def add_model(parser: Parser) -> None:
    """Add the flags of the vocabulary and of the model's shape."""
    vocabulary = "vocab.model, its folder, or its path without .model; default: in --load"
    parser.add_argument("--vocab-file", metavar="FILE", help=vocabulary)
    for name, told in SHAPE.items():
        parser.add_argument(flag(name), type=int, help=f"{told}; compared with the model of --load")


def read_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read config.json of `--load`, and compare the model's shape with the command line.

    Raises:
        InputError: The folder holds no such model, or one of another shape.
    """
    folder = Path(arguments.load)
    if (folder / "latest_checkpointed_iteration.txt").is_file():
        raise InputError(f"--load {folder} is a checkpoint of Megatron; {_CONVERT.format('megatron', folder)}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "cannot be read" if (folder / "config.json").is_file() else "is not there"
        told = _CONVERT.format("mindspore", "RUN")
        raise InputError(f"--load {folder} is no folder of Hugging Face's: its config.json {reason}; {told}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "gpt_pangu":
        raise InputError(f"--load {folder} holds a model of type {kind}, not gpt_pangu")
    ours = {"num_attention_heads": "num_heads"}
    for name in SHAPE:
        there, asked = config.get(ours.get(name, name)), getattr(arguments, name)
        if not isinstance(there, int):
            raise InputError(f"--load {folder}: its config.json has no {ours.get(name, name)}")
        there -= name == "num_layers"  # the original does not count the query layer
        if asked not in (None, there):
            raise InputError(f"{flag(name)} is {asked}, but the model in {folder} has {there}")
    positions = config["max_position_embeddings"]
    if arguments.seq_length is not None and not 2 <= arguments.seq_length <= positions:
        raise InputError(f"--seq-length is {arguments.seq_length}, but must lie between 2 and {positions}")
    return config


def find_vocabulary(arguments: argparse.Namespace, config: dict[str, Any]) -> Path:
    """Find vocab.model, and check that it is the model's.

    Raises:
        InputError: There is none, or it is another one.
    """
    named = Path(arguments.vocab_file or arguments.load)
    found = next((file for file in (named, named / "vocab.model", Path(f"{named}.model")) if file.is_file()), None)
    if found is None:
        raise InputError(f"no vocab.model at {named}; --vocab-file names the model's vocabulary")
    check_vocabulary(found, config.get("vocabulary_md5"), "give that one as --vocab-file")
    return found
