"""Read and write PyTorch's .pt and .bin files one tensor at a time, without PyTorch.

Such a file is a zip archive of uncompressed members. data.pkl is a pickle, which describes each tensor by the number of
its storage, its shape and its strides. data/0, data/1, ... hold the content of the storages. The reader calls nothing
that the pickle names: it records the tensors and replaces all other objects by placeholders, so a file cannot run code.
"""

import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.checkpoint import ckpt_file
from src.checkpoint.formats.parameters import Kind
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
_LOCAL_HEADER = struct.Struct("<26xHH")  # header of a member: the lengths of its name and of its extra field


@dataclass(frozen=True)
class Storage:
    """A member of the archive that holds numbers of one dtype."""

    member: str
    dtype: np.dtype


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Args:
        file: The file.
        storage: Member of the archive that holds the tensor.
        offset: Position of the first element in the storage.
        kind: Shape and dtype.
        strides: Distance between neighbouring elements along each axis, in elements.
    """

    file: Path
    storage: Storage
    offset: int
    kind: Kind
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Return the tensor as a read-only, memory-mapped view of the file."""
        with zipfile.ZipFile(self.file) as archive, self.file.open("rb") as file:
            entry = archive.getinfo(self.storage.member)
            file.seek(entry.header_offset)
            start = entry.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
        itemsize = self.kind.dtype.itemsize
        content = np.memmap(self.file, np.uint8, "r", start, (entry.file_size,))
        words = content[self.offset * itemsize :].view(f"u{itemsize}")
        steps = tuple(stride * itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(words, self.kind.shape, steps, writeable=False).view(self.kind.dtype)


class _Ignored:
    """Placeholder for pickled objects that are not tensors."""

    def __init__(self, *arguments: object, **settings: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Ignore an entry: subclasses of list are filled with `append` or `extend`."""

    def extend(self, values: object) -> None:
        """Ignore entries."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, prefix: str, content: IO[bytes]):
        super().__init__(content)
        self.path, self.prefix = path, prefix

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *rest: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        return name if module == "torch" and name in _STORAGES else _Ignored

    def persistent_load(self, saved: tuple) -> Storage:
        _, storage, key, *_ = saved
        if storage not in _STORAGES:
            raise ValueError(f"a storage of type {storage}")
        return Storage(f"{self.prefix}/data/{key}", ckpt_file.DTYPES[_STORAGES[storage]])

    def _tensor(self, storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: object) -> Tensor:
        return Tensor(self.path, storage, offset, Kind(tuple(shape), storage.dtype), tuple(strides))


def load(path: Path) -> Any:
    """Read what torch.load returns, with a `Tensor` for each tensor and a placeholder for each unknown object.

    Raises:
        InputError: The file is not a whole PyTorch file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickled) as content:
                tree = _Unpickler(path, pickled.removesuffix("/data.pkl"), content).load()
            members = {entry.filename: entry for entry in archive.infolist()}
    except Exception as error:  # a pickle can raise any error
        hint = (
            "it is in PyTorch's format of before 1.6: load and save it with PyTorch once"
            if path.is_file() and _is_old(path)
            else "fetch or copy it again"
        )
        raise InputError(f"{path} is not a whole PyTorch file ({type(error).__name__}: {error}): {hint}") from error
    for tensor in _leaves(tree).values():
        entry = members.get(tensor.storage.member)
        reach = (
            tensor.offset
            + sum((size - 1) * step for size, step in zip(tensor.kind.shape, tensor.strides, strict=True))
            + 1
        )
        if (
            entry is None
            or entry.compress_type != zipfile.ZIP_STORED
            or (tensor.kind.size and reach * tensor.kind.dtype.itemsize > entry.file_size)
        ):
            raise InputError(f"{path} is damaged: {tensor.storage.member} is missing or too short")
    return tree


def _is_old(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


def _leaves(tree: object, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {prefix: tree}
    if not isinstance(tree, dict):
        return {}
    return {
        name: tensor
        for key, value in tree.items()
        for name, tensor in _leaves(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def tensors(path: Path, *within: str) -> dict[str, Tensor]:
    """Read the tensors of a file by name. A name joins the keys of nested dictionaries with dots.

    Args:
        path: The file.
        within: Keys of the dictionary that holds the tensors.

    Raises:
        InputError: The file is not whole, or has no such dictionary.
    """
    tree = load(path)
    for key in within:
        tree = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(tree, dict):
            raise InputError(f"{path} has no '{key}': it is not a checkpoint of this format")
    return _leaves(tree)


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
