"""Read this project's MindRecord files without MindSpore.

The index, FILE.db, is a SQLite database with the place of each record in FILE. FILE begins with a header: the length of
a JSON text in 8 bytes, and the text, which names the columns. Pages of equal size follow. A record is 8 bytes and then
its columns. If there are several, each one begins with its length in 8 bytes, big-endian. A column of whole numbers is
their count in 4 bytes, big-endian; two bits for each number, which give the logarithm of its size in bytes; and the
numbers, little-endian and signed.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from src.common.errors import InputError
from src.common.reading import parse_json

_MOST_HEADER_BYTES = 1 << 24  # what MindSpore reserves for the header by default
_INDEX = "SELECT PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES ORDER BY ROW_ID"


class RecordFile:
    """A MindRecord file of int32 columns.

    Args:
        path: The file. Its index has the same name with .db added.

    Attributes:
        columns: Names of the columns.

    Raises:
        InputError: The file or its index is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, index = path, path.with_name(path.name + ".db")
        if not index.is_file():
            raise InputError(f"{path} has no index {index.name} beside it; copy both")
        try:
            with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
                self._index = np.array(database.execute(_INDEX).fetchall(), np.int64).reshape(-1, 3)
            self._bytes = np.memmap(path, np.uint8, "r")
            length = int.from_bytes(self._bytes[:8].tobytes(), "little")
            header = parse_json(self._bytes[8 : 8 + min(length, _MOST_HEADER_BYTES)].tobytes(), path)
            self._start, self._page = int(header["header_size"]), int(header["page_size"])
            self.columns = list(header["schema"][0]["blob_fields"])
        except (sqlite3.Error, ValueError, KeyError, IndexError, TypeError, OSError) as error:
            raise self._damaged() from error

    def __len__(self) -> int:
        return len(self._index)

    def read(self, record: int) -> dict[str, np.ndarray]:
        """Return the columns of a record, int32 (width,) each.

        Raises:
            InputError: The file is damaged.
        """
        page, begin, end = self._index[record]
        place = self._start + page * self._page
        if place + end > len(self._bytes):
            raise self._damaged()
        blob = self._bytes[place + begin + 8 : place + end]
        columns = {}
        try:
            for name in self.columns:
                column, rest = blob, blob[:0]
                if len(self.columns) > 1:
                    length = int.from_bytes(blob[:8].tobytes(), "big")
                    column, rest = blob[8 : 8 + length], blob[8 + length :]
                columns[name], blob = _numbers(column), rest
        except (ValueError, IndexError) as error:
            raise self._damaged() from error
        return columns

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._path} and its index are not a whole MindRecord; write them again with `python -m src.preprocess`"
        )


def _numbers(column: np.ndarray) -> np.ndarray:
    """Return the numbers of a column, uint8 (bytes,), as int32 (width,). Raises ValueError if bytes are missing."""
    count = int.from_bytes(column[:4].tobytes(), "big")
    bits = column[4 : 4 + -(-count // 4)]
    sizes = 1 << ((bits[:, None] >> np.array([6, 4, 2, 0], np.uint8)) & 3).reshape(-1)[:count].astype(np.int64)
    values = column[4 + len(bits) :]
    if len(sizes) != count or sizes.sum() != len(values):
        raise ValueError("bytes are missing")
    starts = np.cumsum(sizes) - sizes
    numbers = np.zeros(count, np.int64)
    for byte in range(4):
        has_it = sizes > byte
        numbers[has_it] |= values[starts[has_it] + byte].astype(np.int64) << 8 * byte
    return np.where(numbers >> (8 * sizes - 1) & 1, numbers - (1 << 8 * sizes), numbers).astype(np.int32)
