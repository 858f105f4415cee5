"""MindRecord files that are there whole or not at all."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from src.common.errors import InputError

LOSS_MASK_COLUMN = "loss_mask"
FORBIDDEN_IN_NAMES = "\\:*?\"<>|`&';"  # by MindRecord
RECORDS_A_WRITE = 256
READER_THREADS = 2


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


def record_files(path: str | Path) -> list[Path]:
    """The MindRecord files that `path` is or holds, by name.

    In a folder they are known by their suffix .mindrecord or by the index (.db) that stands beside them.

    Raises:
        InputError: No such path, or none in the folder.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no MindRecord file or folder '{path}'; `python -m src.preprocess` makes one")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix == ".mindrecord" or _index_of(file).exists())
    if not files:
        raise InputError(f"folder '{path}' holds no MindRecord file; `python -m src.preprocess` makes one")
    return files


def _index_of(file: Path) -> Path:
    return file.with_name(file.name + ".db")


def _not_whole(file: Path) -> InputError:
    return InputError(
        f"{file} and its index {_index_of(file).name} are not a whole MindRecord (cut off, renamed or "
        "something else); make them anew with `python -m src.preprocess`"
    )


def check_files(files: Sequence[Path], column: str) -> tuple[list[int], list[str]]:
    """The number of records of each file, and the columns to read from all of them."""
    import mindspore.dataset as ds  # not at the top: src.preprocess and its workers start without MindSpore

    counts, have_mask = [], []
    for file in files:
        if not _index_of(file).is_file():
            raise InputError(
                f"{file} has no index {_index_of(file).name} beside it; copy both, or make them anew "
                "with `python -m src.preprocess`"
            )
        try:
            dataset = ds.MindDataset([str(file)])
            names = dataset.get_col_names()
            counts.append(dataset.get_dataset_size())
        except (RuntimeError, ValueError):
            raise _not_whole(file) from None
        if column not in names:
            raise InputError(f"{file} has no column '{column}'; it has {', '.join(names)}")
        have_mask.append(LOSS_MASK_COLUMN in names)
    if len(set(have_mask)) > 1:
        raise InputError(
            f"only some of the files in {files[0].parent} have a column {LOSS_MASK_COLUMN}; keep "
            "pre-training and fine-tuning records in folders of their own"
        )
    return counts, [column, LOSS_MASK_COLUMN] if have_mask[0] else [column]


def read_records(files: Sequence[Path], columns: Sequence[str], records: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The columns of each of `records`, which are numbered through `files`."""
    import mindspore.dataset as ds

    dataset = ds.MindDataset(
        [str(file) for file in files],
        list(columns),
        num_parallel_workers=READER_THREADS,
        sampler=ds.SubsetSampler(records.tolist()),
    )
    return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)


def outermost_records(file: Path, columns: Sequence[str], num_records: int) -> tuple[list[int], list[list[np.ndarray]]]:
    """Read the first and the last record of a file. A file that was cut off has lost its last record.

    Returns:
        The numbers of these records in the file, and their columns.

    Raises:
        InputError: They cannot be read.
    """
    numbers = sorted({0, num_records - 1})
    try:
        with _quiet_stderr():
            return numbers, list(read_records([file], columns, np.array(numbers)))
    except RuntimeError:
        raise _not_whole(file) from None


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep what MindSpore's C++ threads write to stderr from the user, who gets our one line instead."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
