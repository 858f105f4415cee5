"""Read and write PyTorch's .pt and .bin files one tensor at a time, without PyTorch.

Such a file is a zip archive of uncompressed members. data.pkl is a pickle, which describes each tensor by the number of
its storage, its shape and its strides; `torch_pickle` decodes it. data/0, data/1, ... hold the content of the storages.
Files come from strangers: each place in them is checked before memory is read.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.checkpoint import ckpt_file
from src.checkpoint.formats.parameters import Kind
from src.checkpoint.formats.torch_pickle import Described, decode, leaves
from src.checkpoint.limits import MOST_TENSORS
from src.common.checks import check_seekable
from src.common.errors import InputError

_STORAGES = {
    "FloatStorage": "Float32",
    "HalfStorage": "Float16",
    "BFloat16Storage": "BFloat16",
    "DoubleStorage": "Float64",
    "LongStorage": "Int64",
    "IntStorage": "Int32",
    "ShortStorage": "Int16",
    "CharStorage": "Int8",
    "ByteStorage": "UInt8",
    "BoolStorage": "Bool",
}
_STORAGE_NAMES = {ckpt_file.DTYPES[name]: storage for storage, name in _STORAGES.items()}
_ALIGNMENT = 64  # bytes, as in PyTorch's own files, so that they can be memory-mapped
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # header of a member: a mark, the lengths of its name and of its extra field
_LOCAL_MARK = b"PK\3\4"
MOST_PICKLE_BYTES = 1 << 26  # of data.pkl; a tensor takes about 200
MOST_DIRECTORY_BYTES = 128 * MOST_TENSORS  # of the list of members; one takes 46 bytes and its name
MOST_SHARING = 2  # bytes of all tensors, as a multiple of the file's
_zipfile: Any = zipfile  # typeshed knows only a part of it
_LONGEST_REASON = 200  # characters of an error that a file can choose


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. It lies inside its storage, and the storage inside the file.

    Args:
        file: The file.
        content: Bytes of the file that hold the storage.
        offset: Position of the first element in the storage.
        kind: Shape and dtype.
        strides: Distance between neighbouring elements along each axis, in elements.
    """

    file: Path
    content: range
    offset: int
    kind: Kind
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only, memory-mapped view of the file."""
        if not self.kind.size:
            return np.empty(self.kind.shape, self.kind.dtype)
        itemsize = self.kind.dtype.itemsize
        content = np.memmap(self.file, np.uint8, "r", self.content.start, (len(self.content),))
        first = self.offset * itemsize
        words = content[first : first + (len(content) - first) // itemsize * itemsize].view(f"u{itemsize}")
        steps = tuple(stride * itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(words, self.kind.shape, steps, writeable=False).view(self.kind.dtype)


def load(path: Path) -> Any:
    """Read what torch.load returns, with a `Described` for each tensor and a placeholder for each unknown object.

    Raises:
        InputError: The file is not a whole PyTorch file.
    """
    return _opened(path)[0]


def _opened(path: Path) -> tuple[Any, dict[str, range]]:
    """Return the tree of the pickle, and the byte ranges of the archive's storages by their keys."""
    check_seekable(path)
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            names = archive.namelist()
            if len(names) > MOST_TENSORS:
                raise ValueError(f"it has more than {MOST_TENSORS:,} members")
            if len(names) != len(set(names)) or sum(name.endswith("/data.pkl") for name in names) > 1:
                raise ValueError("it holds a member or a model twice, so that readers differ in what they take")
            pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            if pickled.file_size > MOST_PICKLE_BYTES:
                raise ValueError(f"data.pkl has more than {MOST_PICKLE_BYTES >> 20} MiB")
            prefix = pickled.filename.removesuffix("data.pkl")
            size = path.stat().st_size
            places = {
                entry.filename.removeprefix(prefix): _place(file, entry, size)
                for entry in archive.infolist()
                if entry.filename.startswith(prefix) and not entry.is_dir()
            }
            order = places.get("byteorder")
            if order and (file.seek(order.start), file.read(len(order)))[1] != b"little":
                raise ValueError("its numbers are not in little-endian order")
            file.seek(places["data.pkl"].start)
            return decode(file.read(len(places["data.pkl"]))), places
    except Exception as error:  # a pickle can raise any error
        raise _not_whole(path, error) from error


def _check_directory(path: Path) -> None:
    """Refuse a long list of members before zipfile makes an object of each."""
    with path.open("rb") as file:
        end = _zipfile._EndRecData(file)  # None in a file that is no archive, as ZipFile tells
    if end and end[_zipfile._ECD_SIZE] > MOST_DIRECTORY_BYTES:
        raise ValueError(f"it has more than {MOST_TENSORS:,} members, or members with long names")


def _place(file: IO[bytes], entry: zipfile.ZipInfo, size: int) -> range:
    """Return the byte range of a member's content in a file of `size` bytes."""
    file.seek(entry.header_offset)
    mark, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
    if mark != _LOCAL_MARK or entry.compress_type != zipfile.ZIP_STORED or start + entry.file_size > size:
        raise ValueError(f"{entry.filename} is compressed, or is not whole in the file")
    return range(start, start + entry.file_size)


def _not_whole(path: Path, error: Exception) -> InputError:
    hint = (
        "it is in PyTorch's format of before 1.6: load and save it with PyTorch once"
        if path.is_file() and _is_old(path)
        else "fetch or copy it again"
    )
    told = " ".join(str(error).split())[:_LONGEST_REASON]
    return InputError(f"{path} is not a whole PyTorch file ({type(error).__name__}: {told}): {hint}")


def _is_old(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


def _checked(path: Path, name: str, given: Described, places: Mapping[str, range]) -> Tensor:
    """Check that a tensor lies inside its storage, and has no more elements than it.

    Raises:
        InputError: It does not, its storage is missing or of an unknown type, or holds other values than the tensor.
    """
    storage = given.storage
    if given.marks:
        raise InputError(
            f"{path}: '{name}' is marked as {given.marks[0]}, so its stored numbers are not its values: save its "
            "resolve_neg() or resolve_conj() with PyTorch"
        )
    if storage.type_ not in _STORAGES:
        raise InputError(f"{path}: '{name}' is a {storage.type_}, which weights are not")
    dtype = ckpt_file.DTYPES[_STORAGES[storage.type_]]
    content = places.get(f"data/{storage.key}")
    if content is None:
        raise InputError(f"{path} is damaged: the storage data/{storage.key} of '{name}' is missing")
    strides = tuple(step if size > 1 else 0 for size, step in zip(given.shape, given.strides, strict=True))
    reach = given.offset + sum((size - 1) * step for size, step in zip(given.shape, strides, strict=True)) + 1
    room = len(content) // dtype.itemsize
    if prod(max(size, 1) for size in given.shape) > max(room, 1) or (0 not in given.shape and reach > room):
        raise InputError(
            f"{path} is damaged: '{name}' has a shape, strides or an offset that reach outside its storage, "
            f"data/{storage.key}"
        )
    return Tensor(path, content, given.offset, Kind(given.shape, dtype), strides)


def tensors(path: Path, *within: str) -> dict[str, Tensor]:
    """Read the tensors of a file by name. A name joins the keys of nested dictionaries with dots.

    Args:
        path: The file.
        within: Keys of the dictionary that holds the tensors.

    Raises:
        InputError: The file is not whole, or has no such dictionary, or its tensors share much of their content.
    """
    tree, places = _opened(path)
    for key in within:
        tree = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(tree, dict):
            raise InputError(f"{path} has no '{key}': it is not a checkpoint of this format")
    try:
        described = dict(leaves(tree))
    except ValueError as error:
        raise _not_whole(path, error) from error
    found = {name: _checked(path, name, given, places) for name, given in described.items()}
    # Tensors may share a storage, as a word embedding and the head that is tied to it. With two users of each storage
    # they have twice the bytes of the file. Without a limit, a file of megabytes can stand for terabytes.
    total, size = sum(tensor.kind.nbytes for tensor in found.values()), path.stat().st_size
    if total > MOST_SHARING * size:
        raise InputError(
            f"{path} has {size:,} bytes, but its tensors {total:,}, as many share a storage: save each with clone()"
        )
    return found


def write(path: Path, tree: Mapping[str, object], values: Iterator[np.ndarray]) -> None:
    """Write a file that torch.load can read, also with weights_only.

    Args:
        path: The file.
        tree: Nested dictionaries. Values are a `Kind` for a tensor, texts, or whole numbers.
        values: The tensors in the order of the tree.
    """
    kinds: list[Kind] = []
    body = b"\x80\x02" + _pickled(tree, kinds) + b"."
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _member(file, archive, "archive/data.pkl", body)
        _member(file, archive, "archive/byteorder", b"little")
        for number, (kind, value) in enumerate(zip(kinds, values, strict=True)):
            content = np.ascontiguousarray(value).reshape(-1)
            if (value.shape, value.dtype) != (kind.shape, kind.dtype):
                raise ValueError(f"{value.shape} {value.dtype} instead of {kind}")
            _member(file, archive, f"archive/data/{number}", content.view(np.uint8).data)
        _member(file, archive, "archive/version", b"3\n")


def _member(file: IO[bytes], archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name)
    entry.file_size = len(content)
    begin = file.tell() + 30 + len(name)  # a member's header has 30 bytes and the name
    padding = -(begin + 4) % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    with archive.open(entry, "w") as member:
        member.write(content)


def _pickled(value: object, kinds: list[Kind]) -> bytes:
    """Encode a value as pickle opcodes. The pickle module cannot name PyTorch's classes without PyTorch."""
    if isinstance(value, Kind):
        kinds.append(value)
        storage = (
            b"("
            + _text("storage")
            + b"ctorch\n"
            + _STORAGE_NAMES[value.dtype].encode()
            + b"\n"
            + _text(str(len(kinds) - 1))
            + _text("cpu")
            + _number(value.size)
            + b"tQ"
        )
        strides = [int(np.prod(value.shape[axis + 1 :], dtype=np.int64)) for axis in range(len(value.shape))]
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + _number(0)
            + _numbers(value.shape)
            + _numbers(strides)
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_text(key) + _pickled(item, kinds) for key, item in value.items()) + b"u"
    return _number(value) if isinstance(value, int) else _text(str(value))


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(_number(int(value)) for value in values) + b"t"
