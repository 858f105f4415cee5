"""Finished examples on disk, so that an interrupted evaluation goes on where it stopped.

Each finished example is a line of predictions.jsonl in the output folder. An evaluation that is started again with the
same settings predicts only the examples that the file lacks.
"""

import json
from pathlib import Path
from typing import Any

from src.common.errors import InputError
from src.common.files import write_text
from src.common.reading import parse_json, read_json

PREDICTIONS_FILE, SETTINGS_FILE = "predictions.jsonl", "settings.json"


class Predictions:
    """The finished examples of an evaluation.

    `records` holds them by number: a dictionary with "number", "file", and what the task predicted.

    Args:
        folder: Output folder of the evaluation.
        settings: Settings that predictions depend on; JSON.
        writes: Whether this process writes the files. One of several ranks does.

    Raises:
        InputError: The folder holds predictions of other settings, or a damaged file.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], writes: bool = True):
        self.folder = folder
        self._check(settings)
        self.records = self._read()
        self._file = None
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / SETTINGS_FILE, json.dumps(settings, ensure_ascii=False, indent=1))
            self._rewrite()
            self._file = (folder / PREDICTIONS_FILE).open("a", encoding="utf-8")

    def _check(self, settings: dict[str, Any]) -> None:
        file = self.folder / SETTINGS_FILE
        if not file.is_file():
            return
        try:
            others = read_json(file)
            different = [name for name in {**others, **settings} if others.get(name) != settings.get(name)]
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{file} can't be read ({error}); give another --output") from error
        if different:
            name = different[0]
            raise InputError(
                f"{self.folder} holds predictions with {name} {others.get(name)}, not "
                f"{settings.get(name)}; give another --output or remove it"
            )

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

    def _rewrite(self) -> None:
        lines = [json.dumps(self.records[number], ensure_ascii=False) + "\n" for number in sorted(self.records)]
        write_text(self.folder / PREDICTIONS_FILE, "".join(lines))

    def add(self, record: dict[str, Any]) -> None:
        """Keep a finished example and append it to the file."""
        self.records[record["number"]] = record
        if self._file:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self) -> None:
        """Close the file and sort its lines by number."""
        if self._file:
            self._file.close()
            self._rewrite()
