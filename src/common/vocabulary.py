"""MD5 of a vocabulary, and checks that a vocabulary is the one that the model was trained with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from src.common.errors import InputError


def vocabulary_md5(path: str | Path) -> str:
    """Return the MD5 of a vocabulary.

    Args:
        path: The file, or the folder that holds vocab.model, or vocab.json and merges.txt.

    Raises:
        InputError: There is no such file.
    """
    file = _main_file(path)
    merges = file.with_name("merges.txt")
    both = file.name == "vocab.json" and merges.is_file()
    return hashlib.md5(file.read_bytes() + (merges.read_bytes() if both else b"")).hexdigest()


def _main_file(path: str | Path) -> Path:
    folder = Path(path)
    file = next((file for file in (folder, folder / "vocab.model", folder / "vocab.json") if file.is_file()), None)
    if file is None:
        raise InputError(f"no vocabulary at {path}: give the folder of vocab.model")
    return file


def check_vocabulary(path: str | Path, expected: str | None, remedy: str) -> None:
    """Check that a vocabulary is the one that a model was trained with.

    Args:
        path: The vocabulary, as `vocabulary_md5` takes it.
        expected: MD5 of the model's vocabulary. Empty or None means unknown, and nothing is checked.
        remedy: Text that says what the user can do. It ends the error message.

    Raises:
        InputError: There is no vocabulary, or it is another one.
    """
    # Older checkpoints know the MD5 of vocab.json alone.
    if expected and expected not in (vocabulary_md5(path), hashlib.md5(_main_file(path).read_bytes()).hexdigest()):
        raise InputError(
            f"the vocabulary at {path} is not the one that the model was trained with: its md5 is "
            f"{vocabulary_md5(path)}, the model's is {expected}; {remedy}"
        )


def check_vocabulary_size(vocab_size: int, model_vocab_size: int, path: str | Path = "") -> None:
    """Raise InputError if a vocabulary, which is at `path` if that is known, has more pieces than a model has ids."""
    if vocab_size > model_vocab_size:
        raise InputError(
            f"the vocabulary{f' at {path}' if path else ''} has {vocab_size} pieces but the model only "
            f"{model_vocab_size} ids; take the one that the model was trained with"
        )
