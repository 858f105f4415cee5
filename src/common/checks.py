"""What every tokenizer asks of its vocabulary: where its file is, and whether ids and text belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.common.errors import InputError


def vocabulary_file(path: str | Path, name: str, remedy: str) -> Path:
    """The vocabulary file `name`, given itself or the folder that holds it.

    Args:
        path: The file, by whatever name, or a folder.
        name: The file's name inside a folder.
        remedy: How the user gets such a file; ends the error's line.

    Raises:
        InputError: There is no such file.
    """
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"no vocabulary {file}; {remedy}")
    return file


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise InputError for the first id outside [0, vocab_size)."""
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise InputError(
                f"id {token} at position {position} is outside the tokenizer's vocabulary of {vocab_size} ids"
            )


def check_text(text: str) -> None:
    """Raise InputError for text that UTF-8 cannot hold (a lone surrogate, as broken JSON escapes leave behind)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a surrogate pair, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}; mend or remove it"
        ) from error
