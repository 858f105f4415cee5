"""Records of data files. A bad value is reported with its file and record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.common.errors import InputError
from src.common.reading import lines_of, parse_json, read_text


class Record:
    """A JSON object of a data file. Its methods check the type of a value and name the file and record in errors.

    Args:
        values: The parsed object.
        where: File and record, for error messages.

    Raises:
        InputError: `values` is not an object.
    """

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise InputError(f"{where} is not a JSON object but {_shown(values)}; is it another dataset's file?")
        self.where = where
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _value(self, key: str, kind: type | tuple[type, ...], name: str) -> Any:
        if key not in self._values:
            raise InputError(f"{self.where} has no '{key}'; it has {', '.join(map(str, self._values)) or 'nothing'}")
        if not isinstance(self._values[key], kind):
            raise InputError(f"{self.where}: '{key}' is {_shown(self._values[key])}, not {name}")
        return self._values[key]

    def text(self, key: str) -> str:
        """Return a text; raise InputError if there is none."""
        return self._value(key, str, "a text")

    def number(self, key: str) -> int:
        """Return a whole number; raise InputError if there is none."""
        return self._value(key, int, "a whole number")

    def flag(self, key: str) -> bool:
        """Return a truth value; raise InputError if there is none."""
        return self._value(key, bool, "true or false")

    def some(self, key: str) -> bool:
        """Return whether a list has entries; raise InputError if there is no list."""
        return bool(self._value(key, list, "a list"))

    def texts(self, key: str) -> list[str]:
        """Return a list of one text or more; raise InputError if there is none."""
        found = self._value(key, list, "a list of texts")
        if not found or not all(isinstance(text, str) for text in found):
            raise InputError(f"{self.where}: '{key}' is {_shown(found)}, not a list of texts")
        return found

    def words(self, key: str) -> list[str]:
        """Return a list of one text or more; a number such as 147 becomes a text. Raise InputError if there is none."""
        found = self._value(key, list, "a list of texts")
        if not found or not all(isinstance(word, (str, int, float)) for word in found):
            raise InputError(f"{self.where}: '{key}' is {_shown(found)}, not a list of texts")
        return [word if isinstance(word, str) else f"{word:g}" for word in found]

    def numbers(self, key: str) -> list[int]:
        """Return a list of whole numbers; raise InputError if there is none."""
        found = self._value(key, list, "a list of whole numbers")
        if not all(isinstance(number, int) for number in found):
            raise InputError(f"{self.where}: '{key}' is {_shown(found)}, not a list of whole numbers")
        return found

    def record(self, key: str) -> "Record":
        """Return an object; raise InputError if there is none."""
        return Record(self._value(key, dict, "an object"), f"{self.where}, '{key}'")

    def records(self, key: str) -> list["Record"]:
        """Return a list of objects; raise InputError if there is none."""
        found = self._value(key, list, "a list")
        return [Record(values, f"{self.where}, '{key}' {number}") for number, values in enumerate(found, 1)]

    def all_records(self) -> list["Record"]:
        """Return all values, which must be objects; raise InputError for other values."""
        return [Record(values, f"{self.where}, '{key}'") for key, values in self._values.items()]

    def choice(self, key: str, known: dict[str, str]) -> str:
        """Look up a label, a text or a number, in `known`; raise InputError for an unknown one."""
        label = str(self._value(key, (str, int), "a label"))
        if label not in known:
            raise InputError(f"{self.where}: '{key}' is '{label}', none of {', '.join(known)}")
        return known[label]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


def records(path: Path) -> Iterator[Record]:
    """Read the objects of a JSON list, or of a file with one object a line.

    Raises:
        InputError: A record is not a JSON object, or there are no records.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        parsed = enumerate(parse_json(text, path), 1)
    else:
        parsed = (
            (number, parse_json(line, f"{path}, record {number}"))
            for number, line in enumerate(lines_of(text), 1)
            if line.strip()
        )
    empty = True
    for number, values in parsed:
        empty = False
        yield Record(values, f"{path}, record {number}")
    if empty:
        raise InputError(f"{path} holds no records")
