"""Names of the model's parameters: those of the official checkpoint, which this project uses too.

MindSpore is not imported here.
"""

import re
from collections.abc import Iterable

from src.common.errors import InputError

WORD_TABLE = "backbone.embedding.word_embedding.embedding_table"
POSITION_TABLE = "backbone.embedding.position_embedding.embedding_table"
QUERY_TABLE = "backbone.top_query_embedding.embedding_table"
_MODEL = "backbone."
# Names in older code. The files of the official release may have them too.
_OLDER_NAMES = {
    "backbone.word_embedding.": "backbone.embedding.word_embedding.",
    "backbone.position_embedding.": "backbone.embedding.position_embedding.",
    ".mapping_weight": ".weight",
    ".mapping_bias": ".bias",
}
# Names of the cells that held the model when it was saved.
_WRAPPERS = re.compile(r"(?<![^.])(?:(?:network|pangu_alpha)\.)+(?=backbone\.)")


def official_name(name: str) -> str:
    """Return the official name of a parameter or moment. An official name is returned as it is."""
    for older, newer in _OLDER_NAMES.items():
        name = name.replace(older, newer)
    return _WRAPPERS.sub("", name)


def by_official_name(names: Iterable[str], source: object) -> dict[str, str]:
    """Return the names in a file by their official names.

    Args:
        names: Names as the file has them.
        source: The file, for messages.

    Raises:
        InputError: Two names mean the same parameter.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(official_name(name), name)
        if other != name:
            raise InputError(f"{source}: '{other}' and '{name}' are the same parameter; keep only one of them")
    return found


def is_parameter(name: str) -> bool:
    """Return whether an official name belongs to a parameter, not to an optimizer's moment or a counter."""
    return name.startswith(_MODEL)


def layer_prefixes(num_layers: int) -> list[str]:
    """Return how the official names of each layer's parameters begin. The query layer comes last."""
    return [*(f"backbone.blocks.{number}." for number in range(num_layers - 1)), "backbone.top_query_layer."]


def block_number(name: str) -> int | None:
    """Return the number of the Transformer block that has a parameter; None for a parameter of no block."""
    match = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return int(match[1]) if match else None
