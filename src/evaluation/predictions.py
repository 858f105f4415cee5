"""The finished examples of a run, on disk."""

import json
from pathlib import Path
from typing import Any

from src.common.errors import InputError
from src.common.files import write_text

PREDICTIONS_FILE, SETTINGS_FILE = "predictions.jsonl", "settings.json"


class Predictions:
    """The finished examples of a run, on disk.

    Args:
        folder: Of the run.
        settings: What makes predictions differ; JSON.
        writes: Whether this process writes; of several ranks one does.

    Raises:
        InputError: The folder holds predictions of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], writes: bool = True):
        self.folder, self._writes = folder, writes
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
            others = json.loads(file.read_text(encoding="utf-8"))
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
        """The whole lines by number; a killed run may have left half a line at the end."""
        records = {}
        file = self.folder / PREDICTIONS_FILE
        for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
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
        """Keep a finished example; it is on disk when this returns."""
        self.records[record["number"]] = record
        if self._file:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self) -> None:
        """Sort the file by number."""
        if self._file:
            self._file.close()
            self._rewrite()
