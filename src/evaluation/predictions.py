"""Finished examples on disk, so that an interrupted evaluation goes on where it stopped.

Each finished example is a line of predictions.jsonl in the output folder, and settings.json holds what all of them
depend on. An evaluation that is started again predicts the examples that the file lacks. Predictions of another model,
of other settings or of a changed example are not used: the files are moved into a folder beside them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.common.errors import InputError
from src.common.files import naming, write_text
from src.common.reading import parse_json, read_json

PREDICTIONS_FILE, SETTINGS_FILE, RESULT_FILE = "predictions.jsonl", "settings.json", "result.json"
EARLIER = "earlier_"  # begins the name of a folder of predictions that are not used any more


class Predictions:
    """The finished examples of an evaluation.

    Every rank reads the folder; then one of them calls `begin`, which may move and write files.

    Args:
        folder: Output folder of the evaluation.
        settings: What all predictions depend on; JSON.
        digests: Digest of each example with its prompt, by number.

    Attributes:
        records: Finished examples by number: a dictionary with "number", "file", "example" (the digest), and what the
            task predicted.

    Raises:
        InputError: The folder holds a damaged file.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], digests: Mapping[int, str]):
        self.folder, self.digests = folder, digests
        self._settings = json.loads(json.dumps(settings))
        found = self._read()
        self._different = self._differences() if found else []
        self.records = {} if self._different else {n: one for n, one in found.items() if self._holds(n, one)}
        self._dropped = len(found) - len(self.records)
        self._file = None

    def _holds(self, number: int, record: dict[str, Any]) -> bool:
        """Return whether a record is of the present example. Examples beyond --limit are not known."""
        return number not in self.digests or record.get("example") == self.digests[number]

    def _differences(self) -> list[str]:
        """Return the names of the settings with which the folder's predictions were not made."""
        file = self.folder / SETTINGS_FILE
        try:
            others = read_json(file) if file.is_file() else {}
            return [name for name in {**self._settings, **others} if others.get(name) != self._settings.get(name)]
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{file} can't be read ({error}); give another --output") from error

    def _read(self) -> dict[int, dict[str, Any]]:
        """Read the complete lines, by number. A killed run can leave half a line at the end, which is dropped."""
        records = {}
        file = self.folder / PREDICTIONS_FILE
        for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
            try:
                record = parse_json(line, file) if line.endswith(b"\n") else None
            except ValueError as error:
                raise InputError(
                    f"{file} holds a damaged line ({error}); remove that line or give another --output"
                ) from error
            if record:
                records[record["number"]] = record
        return records

    def begin(self) -> str:
        """Open the file for new examples. Return a line about earlier predictions that are not used, or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = ""
        if self._dropped:
            aside = self.set_aside()
            what = " and ".join(self._different) or "the example or its prompt"
            told = (
                f"{self._dropped} earlier predictions are not used, since they were made with other {what}; "
                f"they are in {aside}, and these examples are predicted again"
            )
        write_text(self.folder / SETTINGS_FILE, json.dumps(self._settings, ensure_ascii=False, indent=1))
        self._rewrite()
        # Unbuffered, so that nothing is left to write, and to fail again, after an error.
        self._file = (self.folder / PREDICTIONS_FILE).open("ab", buffering=0)
        return told

    def set_aside(self) -> Path:
        """Move the files of the folder into a new folder inside it, and return that folder."""
        numbers = (number for number in range(1, 1 << 31) if not (self.folder / f"{EARLIER}{number}").exists())
        aside = self.folder / f"{EARLIER}{next(numbers)}"
        aside.mkdir()
        for name in (PREDICTIONS_FILE, SETTINGS_FILE, RESULT_FILE):
            if (self.folder / name).exists():
                (self.folder / name).rename(aside / name)
        return aside

    def _rewrite(self) -> None:
        lines = [json.dumps(self.records[number], ensure_ascii=False) + "\n" for number in sorted(self.records)]
        write_text(self.folder / PREDICTIONS_FILE, "".join(lines))

    def add(self, number: int, file: str, values: dict[str, Any]) -> None:
        """Keep a finished example and append it to the file."""
        record = {"number": number, "file": file, "example": self.digests[number]} | values
        self.records[number] = record
        if self._file:
            with naming(self.folder / PREDICTIONS_FILE):
                self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())

    def finish(self) -> None:
        """Close the file and sort its lines by number."""
        if self._file:
            self._file.close()
            self._rewrite()
