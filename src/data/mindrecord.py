"""MindRecord files that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from src.common.errors import InputError

LOSS_MASK_COLUMN = "loss_mask"
FORBIDDEN_IN_NAMES = "\\:*?\"<>|`&';"  # by MindRecord
RECORDS_A_WRITE = 256


class RecordWriter:
    """A MindRecord file that grows in a hidden folder beside its place, until `finish` moves it there.

    The file name is part of a MindRecord's content, so it is the folder that is temporary and not the name. Leaving
    the `with` block removes the folder; a killed run's is removed by the next run for the same output.

    Args:
        output: Where the file is to stand; its index stands beside it, with .db added.
        widths: int32 values a record, for each column.

    Raises:
        InputError: The output's folder cannot be written in, or its disk is full.
    """

    def __init__(self, output: Path, widths: dict[str, int]) -> None:
        self._output = output
        self._prefix = f".{output.name}.partial-"
        self._partial = output.parent / f"{self._prefix}{os.getpid()}" / output.name
        self._schema = {column: {"type": "int32", "shape": [width]} for column, width in widths.items()}
        self._writer = None
        self._waiting: list[dict[str, np.ndarray]] = []
        self.num_records = 0

    def __enter__(self) -> "RecordWriter":
        folder = self._partial.parent
        try:
            self._output.parent.mkdir(parents=True, exist_ok=True)
            for other in self._output.parent.glob(f"{self._prefix}[0-9]*"):
                if other == folder or not psutil.pid_exists(int(other.name.removeprefix(self._prefix))):
                    shutil.rmtree(other)
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"{self._output}: cannot write in {self._output.parent} ({error.strerror}); choose another folder"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._partial.parent)

    def write(self, *columns: np.ndarray) -> None:
        """Add records, int32 (records, width) for each column."""
        rows = [dict(zip(self._schema, values, strict=True)) for values in zip(*columns, strict=True)]
        self.num_records += len(rows)
        self._waiting += rows
        if len(self._waiting) >= RECORDS_A_WRITE:
            self._flush()

    def _flush(self) -> None:
        if not self._writer:
            from mindspore.mindrecord import FileWriter  # not above: a second, better spent while workers tokenize

            self._writer = FileWriter(str(self._partial), shard_num=1)
            self._writer.add_schema(self._schema)
        with self._told_if_full():
            self._writer.write_raw_data(self._waiting)
        self._waiting = []

    @contextmanager
    def _told_if_full(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            raise InputError(
                f"{self._output}: MindSpore cannot write it; has the disk of {self._output.parent} no space left?"
            ) from None

    def finish(self) -> None:
        """Index the file, which must hold a record, and move it to its place.

        An older file goes before, lest it be met with the new index; the new one comes last, for it is what readers
        look for.
        """
        if self._waiting:
            self._flush()
        with self._told_if_full():
            self._writer.commit()
        self._output.unlink(missing_ok=True)
        os.replace(f"{self._partial}.db", f"{self._output}.db")
        os.replace(self._partial, self._output)
