"""Read any part of MindSpore's .ckpt files, and write them one parameter at a time.

A file is one protobuf message (MindSpore's checkpoint.proto): a list of {1: name, 2: {1: dimensions, 2: type,
3: content}}. A large parameter is stored in several such pieces. `mindspore.load_checkpoint` needs memory for several
copies of the whole file; here each rank of a run reads its own slices only.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.common import np_dtype

from src.checkpoint.limits import LONGEST_NAME, MOST_AXES, MOST_TENSORS
from src.common.checks import check_seekable
from src.common.errors import InputError
from src.parallel.plan.sharding import Box

DTYPES = {
    name: np.dtype(name.lower())
    for name in (
        "Float32",
        "Float16",
        "Float64",
        "Int64",
        "Int32",
        "Int16",
        "Int8",
        "UInt64",
        "UInt32",
        "UInt16",
        "UInt8",
        "Bool",
    )
}
DTYPES["BFloat16"] = np.dtype(np_dtype.bfloat16)  # MindSpore's names of types, and numpy's types
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE_BYTES = 1 << 29  # as in MindSpore's own files; a protobuf message must be smaller than 2 GiB
_CHECKSUM_MARK, _CHECKSUM_BYTES = b"crc_num", 10  # a checksum that can follow the message
_VARINT, _SPAN = 0, 2  # protobuf's wire types
_MOST_ELEMENTS = 1 << 56  # more than an array can have
MOST_FIELDS = 10 * MOST_TENSORS  # in all messages of a file; a matrix takes 8
_LONGEST_NUMBER = 10  # bytes of a number of 64 bits


@dataclass
class Stored:
    """Position of a parameter in a file.

    Args:
        dtype: MindSpore's name of the dtype, such as Float32.
        shape: Shape of the parameter.
        pieces: Byte ranges in the file. Joined, they are the parameter's content.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: list[range] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether the pieces have the number of bytes that dtype and shape need."""
        itemsize = DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0
        return not itemsize or sum(map(len, self.pieces)) == itemsize * prod(self.shape)


def index(path: Path) -> dict[str, Stored]:
    """Find the parameters of a file by name, without reading their content.

    Raises:
        InputError: The file can't be read, or is not a whole .ckpt file.
    """
    check_seekable(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _index(data)
    except _TooManyError as error:
        raise InputError(f"{path} is damaged, or is no checkpoint of a model: {error}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # the errors of parsing other bytes
        raise InputError(
            f"{path} is not a whole MindSpore checkpoint ({path.stat().st_size} bytes): fetch or copy it again"
        ) from error


class _TooManyError(Exception):
    """A file has more of something than a checkpoint has."""


def _index(data: mmap.mmap) -> dict[str, Stored]:
    end = len(data)
    tail = len(_CHECKSUM_MARK) + _CHECKSUM_BYTES
    if data[-tail:-_CHECKSUM_BYTES] == _CHECKSUM_MARK:
        end -= tail
    found: dict[str, Stored] = {}
    left = iter(range(MOST_FIELDS))
    for _, value in _fields(data, range(end), left):
        parts = dict(_fields(data, value, left))
        if 2 not in parts:  # a MapParameter of MindSpore: a hash table
            continue
        tensor = list(_fields(data, parts[2], left))
        dims, rest = tuple(number for key, number in tensor if key == 1), dict(tensor)
        name = _text(data, parts[1])
        if len(name) > LONGEST_NAME:
            raise _TooManyError(f"a name has more than {LONGEST_NAME} characters")
        dims = () if dims == (0,) else dims  # how older files store scalars
        if len(dims) > MOST_AXES or prod(max(size, 1) for size in dims) >= _MOST_ELEMENTS:
            raise ValueError("no array has such a shape")
        stored = found.setdefault(name, Stored(_text(data, rest[2]), dims))
        if len(found) > MOST_TENSORS:
            raise _TooManyError(f"it has more than {MOST_TENSORS:,} parameters")
        stored.pieces.append(range(rest[3].start, rest[3].stop))
    if not all(stored.is_whole for stored in found.values()):
        raise ValueError("content and shape differ")
    return found


def _text(data: mmap.mmap, span: range) -> str:
    return data[span.start : span.stop].decode()


def _fields(data: mmap.mmap, span: range, left: Iterator[int]) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message: the field's number, and a number or the byte range of the content.

    Each field takes an item of `left`, which has one for each field that the file may still have.
    """
    at = span.start
    while at < span.stop:
        if next(left, None) is None:
            raise _TooManyError(f"it has more than {MOST_FIELDS:,} fields")
        key, at = _varint(data, at)
        kind = key & 7
        value, at = _varint(data, at)
        if kind == _SPAN:
            value, at = range(at, at + value), at + value
        if kind not in (_VARINT, _SPAN) or at > span.stop:
            raise ValueError("no such field")
        yield key >> 3, value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Decode a number of seven bits a byte, lowest bits first. Return it and the position after it."""
    value = 0
    for place in range(_LONGEST_NUMBER):
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("a number has too many bytes")


def read(path: Path, stored: Stored, box: Box) -> np.ndarray:
    """Read a copy of part of a parameter."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pieces = [np.frombuffer(data, np.uint8, len(piece), piece.start) for piece in stored.pieces]
    content = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    dtype = DTYPES[stored.dtype]
    # Content is not aligned. numpy copies its own types from any address, but not bfloat16.
    words = content.view(f"u{dtype.itemsize}").reshape(stored.shape)
    return np.array(words[box.index]).view(dtype)


def write(path: Path, parameters: Iterable[tuple[str, np.ndarray]], append: bool = False) -> None:
    """Write (name, values) pairs one at a time. The bytes are those of mindspore.save_checkpoint.

    Args:
        path: The file.
        parameters: Names and arrays of the parameters.
        append: Add to a file that holds other parameters and has no checksum.
    """
    with path.open("ab" if append else "wb") as file:
        for name, values in parameters:
            content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
            first = 0
            for head, size in _pieces(name, values.shape, values.dtype):
                file.write(head)
                file.write(content[first : first + size].data)
                first += size


def written_bytes(name: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return the number of bytes that `write` writes for a parameter."""
    return sum(len(head) + size for head, size in _pieces(name, shape, dtype))


def _pieces(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[tuple[bytes, int]]:
    """Yield the header of each piece of a parameter, and the number of bytes of the piece's content."""
    dims = b"".join(_encoded(1 << 3 | _VARINT) + _encoded(size) for size in shape)
    shape_and_type = dims + _span(2, DTYPE_NAMES[dtype].encode())
    whole = prod(shape) * dtype.itemsize
    for first in range(0, whole, PIECE_BYTES):
        size = min(PIECE_BYTES, whole - first)
        tensor = shape_and_type + _head(3, size)
        value = _span(1, name.encode()) + _head(2, len(tensor) + size) + tensor
        yield _head(1, len(value) + size) + value, size


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def _head(number: int, length: int) -> bytes:
    """Encode the header of a field with content of that length."""
    return _encoded(number << 3 | _SPAN) + _encoded(length)


def _span(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content
