"""Read text, JSON and YAML that others wrote. A line ends with `\\n` or `\\r\\n`, and with nothing else.

`str.splitlines` also cuts at U+2028, U+0085, form feeds and others, which are characters of a text or of a JSON string.
Python's text files also cut at a lone `\\r`.
"""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO

import yaml

from src.common.errors import InputError

DEEPEST = 100  # brackets that may be open in YAML
MOST_YAML_BYTES = 1 << 16  # YAML's parser takes a second for them; a run's settings have 3,000
# Lists and objects in JSON: a million take half a second. The index of a checkpoint has two, a rank table of 10,000
# devices as many, and the largest benchmark (WebQA's training set) 400,000.
MOST_BRACKETS = 1_000_000


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without their ends."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def read_text(path: str | Path, name: str = "") -> str:
    """Read a UTF-8 text file, with or without a byte order mark. Its line ends stay as they are.

    Args:
        path: The file.
        name: Name of the file for the message. Empty means its path.

    Raises:
        InputError: The file can't be read, or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{name or path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name or path} can't be read as UTF-8 text: {error}") from error


def read_line(file: TextIO, limit: int) -> str:
    """Read a line, or about `limit` characters of a longer one. `\\r\\n` becomes `\\n`.

    Args:
        file: A text file that was opened with newline="\\n".
        limit: Largest number of characters to read. A few more are read if the last one is `\r`.
    """
    line = file.readline(limit)
    while line.endswith("\r") and (following := file.readline(1)):  # the limit may be in the middle of \r\n
        line += following
    return line[:-2] + "\n" if line.endswith("\r\n") else line


def parse_json(text: str | bytes, where: object) -> Any:
    """Return the content of JSON text.

    Args:
        text: The text. Bytes are UTF-8.
        where: Origin of the text, for the message.

    Raises:
        InputError: It is not JSON, is nested too deep, has too many lists and objects, or has a number of thousands of
            digits.
    """
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets > MOST_BRACKETS:
        raise InputError(f"{where} can't be read as JSON: it has more than {MOST_BRACKETS:,} lists and objects")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{where} is not JSON: it is nested too deep") from error
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file. It raises InputError as `read_text` and `parse_json`."""
    return parse_json(read_text(path), path)


def check_brackets(text: str, where: object) -> None:
    """Raise InputError for YAML with many open brackets. YAML's parsers take minutes for it, or crash."""
    if max(accumulate((character in "[{") - (character in "]}") for character in text), default=0) > DEEPEST:
        raise InputError(
            f"{where} can't be read as YAML: it has more than {DEEPEST} open brackets, so it is nested too deep"
        )


def read_yaml(path: str | Path, name: str = "") -> Any:
    """Read a YAML file.

    Args:
        path: The file.
        name: Name of the file for the message. Empty means its path.

    Raises:
        InputError: As `read_text`; or it is not YAML, is too long or nested too deep, or has a number of thousands of
            digits.
    """
    text = read_text(path, name)
    if len(text) > MOST_YAML_BYTES:
        raise InputError(f"{name or path} can't be read as YAML: it has more than {MOST_YAML_BYTES >> 10} KiB")
    check_brackets(text, name or path)
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise InputError(f"{name or path} can't be read as YAML: it is nested too deep") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{name or path} can't be read as YAML: {error}") from error
