"""Checks that many settings and both tokenizers share. A check that fails raises InputError with one line."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from src.common.errors import InputError


def require(condition: object, message: str) -> None:
    """Raise InputError with `message` if the condition is false."""
    if not condition:
        raise InputError(message)


def at_least(minimum: float, settings: object, *names: str, prefix: str = "--") -> None:
    """Check that attributes of an object are not below a minimum. A value of None is not checked.

    Args:
        minimum: Smallest value that is allowed.
        settings: Object with the attributes.
        names: Names of the attributes.
        prefix: Text before a name in the message: `--` for a flag, `model.` for a setting of that group.

    Raises:
        InputError: A value is below the minimum.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < minimum:
            remedy = "not be negative" if minimum == 0 else f"be at least {minimum}"
            raise InputError(f"{prefix}{name} is {value}; it must {remedy}")


def whole_numbers(minimum: int, maximum: int, settings: object, *names: str, prefix: str = "--") -> None:
    """Check that attributes of an object are whole numbers in a range. A value of None is not checked.

    The maximum is far above what any machine can do. It stops a typing error before it takes memory or time.

    Args:
        minimum: Smallest value that is allowed.
        maximum: Largest value that is allowed.
        settings: Object with the attributes.
        names: Names of the attributes.
        prefix: As in `at_least`.

    Raises:
        InputError: A value is outside the range, or no whole number.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise InputError(f"{prefix}{name} is {value!r}; it must be a whole number")
        at_least(minimum, settings, name, prefix=prefix)
        if value is not None and value > maximum:
            shown = value if value < 10**18 else "more than 10^18"
            raise InputError(f"{prefix}{name} is {shown}; it must be at most {maximum}")


# Bytes, which take a few seconds to load. PanGu-α's 40,000 pieces take about 1 MB, the 260,000 of other models 5 MB.
LARGEST_VOCABULARY = 1 << 24


def vocabulary_file(path: str | Path, name: str, remedy: str) -> Path:
    """Find a vocabulary file.

    Args:
        path: The file itself, under any name, or its folder.
        name: Name of the file in a folder.
        remedy: Text that says how to get such a file. It ends the error message.

    Raises:
        InputError: There is no such file, or it is too large.
    """
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"no vocabulary at {file}; {remedy}")
    if file.stat().st_size > LARGEST_VOCABULARY:
        raise InputError(f"{file} has more than {LARGEST_VOCABULARY >> 20} MiB, so it is no vocabulary; {remedy}")
    return file


def check_seekable(path: Path) -> None:
    """Raise InputError for a pipe, a socket or a device, whose reading can wait or last forever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or a device: give a file on a disk")


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise InputError for the first id outside [0, vocab_size)."""
    for position, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise InputError(
                f"id {token} at position {position} is outside the tokenizer's vocabulary of {vocab_size} ids"
            )


def check_text(text: str) -> None:
    """Raise InputError for text that UTF-8 cannot encode. A broken JSON escape gives such text: a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a surrogate pair, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}; correct or remove it"
        ) from error
