"""Write and read MindRecord files. A written file is whole or absent."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from src.common.errors import InputError

LOSS_MASK_COLUMN = "loss_mask"
FORBIDDEN_IN_NAMES = "\\:*?\"<>|`&';"  # MindRecord refuses them in a file name
RECORDS_A_WRITE = 256
VOCABULARY_TABLE = "pangu_alpha_vocabulary"  # beside MindRecord's own tables in the index, which is a SQLite database
READER_THREADS = 2


class RecordWriter:
    """Writes a MindRecord file in a hidden folder beside `output`, and moves it to `output` in `finish`.

    MindRecord stores the file name in the file. So the file has its final name from the start, in a temporary folder.
    Leaving the `with` block removes that folder. If a run is killed, the next run for the same output removes it.

    Args:
        output: Path of the file. Its index gets the same path with .db added.
        widths: Number of int32 values of a record, for each column.
        vocabulary_md5: MD5 of the vocabulary of the ids. The index keeps it, for `vocabulary_of`.

    Raises:
        InputError: The folder of `output` cannot be written, or the disk is full.
    """

    def __init__(self, output: Path, widths: dict[str, int], vocabulary_md5: str = "") -> None:
        self._output, self._vocabulary_md5 = output, vocabulary_md5
        self._prefix = f".{output.name}.partial-"
        self._partial = output.parent / f"{self._prefix}{os.getpid()}" / output.name
        self._schema = {column: {"type": "int32", "shape": [width]} for column, width in widths.items()}
        self._writer: Any = None  # MindSpore's FileWriter, from the first write on
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
        """Add records: one array for each column, int32 (records, width)."""
        rows = [dict(zip(self._schema, values, strict=True)) for values in zip(*columns, strict=True)]
        self.num_records += len(rows)
        self._waiting += rows
        if len(self._waiting) >= RECORDS_A_WRITE:
            self._flush()

    def _flush(self) -> None:
        if not self._writer:
            from mindspore.mindrecord import FileWriter  # not at the top: it takes a second, in which workers tokenize

            self._writer = FileWriter(str(self._partial), shard_num=1)
            self._writer.add_schema(self._schema)
        with self._told_if_full():
            self._writer.write_raw_data(self._waiting)
        self._waiting = []

    @contextmanager
    def _told_if_full(self) -> Generator[None]:
        try:
            yield
        except (RuntimeError, sqlite3.Error):
            raise InputError(
                f"{self._output}: MindSpore cannot write it; has the disk of {self._output.parent} no space left?"
            ) from None

    def finish(self) -> None:
        """Write the index, and move both files to their place. The file must hold at least one record.

        The old data file is deleted first, so that it is never paired with the new index. The new data file comes last,
        because readers look for it.
        """
        if self._waiting:
            self._flush()
        with self._told_if_full():
            self._writer.commit()
            if self._vocabulary_md5:
                with closing(sqlite3.connect(f"{self._partial}.db")) as index, index:
                    index.execute(f"CREATE TABLE {VOCABULARY_TABLE} (md5 TEXT)")
                    index.execute(f"INSERT INTO {VOCABULARY_TABLE} VALUES (?)", [self._vocabulary_md5])
        self._output.unlink(missing_ok=True)
        os.replace(f"{self._partial}.db", f"{self._output}.db")
        os.replace(self._partial, self._output)


def record_files(path: str | Path) -> list[Path]:
    """Return `path` itself if it is a file, or the MindRecord files in that folder, sorted by name.

    A file in a folder counts if its suffix is .mindrecord or if it has an index (.db) beside it.

    Raises:
        InputError: There is no such path, or no MindRecord file in the folder.
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


def vocabulary_of(file: Path) -> str:
    """Return the MD5 of the vocabulary of a file's ids; empty if its index does not know it."""
    try:
        with closing(sqlite3.connect(f"{_index_of(file).absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as index:
            return str(index.execute(f"SELECT md5 FROM {VOCABULARY_TABLE}").fetchone()[0])
    except (sqlite3.Error, TypeError):
        return ""


def _index_of(file: Path) -> Path:
    return file.with_name(file.name + ".db")


def _not_whole(file: Path) -> InputError:
    return InputError(
        f"{file} and its index {_index_of(file).name} are not a whole MindRecord (cut off, renamed or "
        "not a MindRecord at all); write them again with `python -m src.preprocess`"
    )


def check_files(files: Sequence[Path], column: str) -> tuple[list[int], list[str]]:
    """Check that all files are whole and have the same columns.

    Returns:
        The number of records of each file, and the columns to read: `column`, and the loss mask if there is one.

    Raises:
        InputError: An index is missing, a file is damaged, a column is missing, or only some files have a loss mask.
    """
    import mindspore.dataset as ds  # not at the top: src.preprocess and its workers start without MindSpore

    counts, have_mask = [], []
    for file in files:
        if not _index_of(file).is_file():
            raise InputError(
                f"{file} has no index {_index_of(file).name} beside it; copy both, or write them again "
                "with `python -m src.preprocess`"
            )
        try:
            dataset = ds.MindDataset([str(file)])
            names = dataset.get_col_names()
            counts.append(dataset.get_dataset_size())
        except (RuntimeError, ValueError):
            raise _not_whole(file) from None
        if column not in names:
            raise InputError(f"{file} has no column '{column}' (data.column); it has {', '.join(names)}")
        have_mask.append(LOSS_MASK_COLUMN in names)
    if len(set(have_mask)) > 1:
        raise InputError(
            f"only some of the files in {files[0].parent} have a column {LOSS_MASK_COLUMN}; keep "
            "pre-training and fine-tuning records in folders of their own"
        )
    return counts, [column, LOSS_MASK_COLUMN] if have_mask[0] else [column]


def read_records(files: Sequence[Path], columns: Sequence[str], records: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Return an iterator over the columns of each of `records`. Record numbers count through all files."""
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
def _quiet_stderr() -> Generator[None]:
    """Hide what MindSpore's C++ threads write to stderr. The user gets one line of ours instead."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
