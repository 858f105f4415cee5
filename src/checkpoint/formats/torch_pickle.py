"""Decode the pickle in PyTorch's files. Nothing that the pickle names is called, so a file cannot run code.

The decoder records the tensors and replaces all other objects by placeholders. It is the pure Python unpickler of the
standard library, because the one in C trusts its input more: it takes memory for any memo number, and a deep tuple as a
key overflows its stack.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from src.checkpoint.limits import LONGEST_NAME, MOST_AXES, MOST_TENSORS

MOST_DEPTH = 32
# PyTorch writes about 35 opcodes for a tensor, so 150,000 for PanGu-α 200B with its optimizer's states. Arguments and
# states of random generators add thousands. Each opcode takes about a microsecond, and 100 bytes at most.
MOST_OPCODES = 1_000_000
MOST_ARGUMENTS = 100  # of a call, which copies them; PyTorch's calls have up to 10
MOST_NUMBER_BITS = 64  # of a key: Python's hashes of longer numbers can be chosen to be equal
_KEYS = (str, bytes, int, float, bool, type(None))
_UNUSED = (  # opcodes that PyTorch does not write; some take memory or recurse as the file says
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.FROZENSET,
    pickle.ADDITEMS,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.DICT,
    pickle.LONG4,
    pickle.NEWOBJ_EX,
)


@dataclass(frozen=True)
class Storage:
    """Numbers of one type.

    Args:
        type_: PyTorch's name of the type, such as FloatStorage.
        key: Name in the archive's folder data.
    """

    type_: str
    key: str


@dataclass(frozen=True)
class Described:
    """A tensor as the pickle describes it. All numbers are whole, but none is checked against the storage.

    Args:
        storage: Where its numbers are.
        offset: Position of the first element in the storage.
        shape: Shape.
        strides: Distance between neighbouring elements along each axis, in elements.
        marks: Names of what a reader has to do with the numbers: neg (negate them) or conj (conjugate them).
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    marks: tuple[str, ...] = ()


class _Ignored:
    """Placeholder for objects that are not tensors."""

    def __init__(self, *arguments: object, **settings: object):
        pass

    def append(self, value: object) -> None:
        """Ignore an entry: subclasses of list are filled with `append` or `extend`."""

    def extend(self, values: object) -> None:
        """Ignore entries."""


def _tensor(
    storage: Storage,
    offset: int,
    shape: tuple,
    strides: tuple,
    requires_grad: object = None,
    hooks: object = None,
    metadata: object = None,
) -> Described:
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
        raise ValueError("a tensor's offset, shape or strides are not whole numbers of at least 0, of 64 bits")
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
    # PyTorch looks only for the names, and takes False for True.
    marks = tuple(mark for mark in ("neg", "conj") if isinstance(metadata, dict) and mark in metadata)
    return Described(storage, offset, tuple(shape), tuple(strides), marks)


def _parameter(tensor: object, *rest: object) -> object:
    return tensor


def _empty_dictionary() -> dict:
    return {}


_CALLED: dict[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): _empty_dictionary,
}


_StandardUnpickler: Any = pickle._Unpickler  # typeshed knows only a part of it


class _Steps(dict):
    """The decoder's functions by opcode. They are looked up once for each opcode of a pickle, and so counted."""

    count = 0

    def __getitem__(self, opcode: int) -> Callable:
        self.count += 1
        if self.count > MOST_OPCODES:
            raise ValueError(f"its pickle has more than {MOST_OPCODES:,} opcodes")
        return super().__getitem__(opcode)


class _Unpickler(_StandardUnpickler):
    dispatch = {code: step for code, step in _StandardUnpickler.dispatch.items() if bytes([code]) not in _UNUSED}

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.dispatch = _Steps(self.dispatch)

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name.endswith("Storage"):
            return name
        return _CALLED.get((module, name), _Ignored)

    def persistent_load(self, saved: tuple) -> Storage:
        _, type_, key = saved[:3]
        if not isinstance(type_, str) or not isinstance(key, str):
            raise ValueError("a storage has no type or no name")
        return Storage(type_, key)

    def load_build(self) -> None:
        """Ignore the state of an object, such as the _metadata of PyTorch's dictionaries.

        A state could change a tensor's place after it was checked, and the functions above for every later file.
        """
        self.stack.pop()

    def load_reduce(self) -> None:
        self._check_arguments()
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check_arguments()
        super().load_newobj()

    def _check_arguments(self) -> None:
        """Refuse many arguments, which a pickle can repeat for free. Each call copies them."""
        if len(self.stack[-1]) > MOST_ARGUMENTS:
            raise ValueError(f"a call has more than {MOST_ARGUMENTS} arguments")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        entries = self.pop_mark()
        self._set(self.stack[-1], entries)

    def _set(self, holder: object, entries: list) -> None:
        for key, value in zip(entries[::2], entries[1::2], strict=True):
            if not isinstance(holder, dict) or not isinstance(key, _KEYS):
                continue
            if isinstance(key, str | bytes) and len(key) > LONGEST_NAME:
                raise ValueError(f"a name has more than {LONGEST_NAME} characters")
            if isinstance(key, int) and key.bit_length() > MOST_NUMBER_BITS:
                raise ValueError(f"a key is a number of more than {MOST_NUMBER_BITS} bits")
            holder[key] = value

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def decode(content: bytes) -> Any:
    """Return what the pickle describes: dictionaries and lists, a `Described` for each tensor, and placeholders.

    Raises:
        Exception: The content is not such a pickle. The error can be of any type.
    """
    return _Unpickler(content).load()


def leaves(tree: object) -> Iterator[tuple[str, Described]]:
    """Yield the tensors in nested dictionaries. A name joins the keys with dots.

    Raises:
        ValueError: The dictionaries are nested too deep, as when one contains itself, or have too many entries; or two
            tensors have one name.
    """
    waiting, seen = [("", tree, 0)], 0
    names = set()
    while waiting:
        prefix, value, depth = waiting.pop()
        if isinstance(value, Described):
            if prefix in names:
                raise ValueError(f"it holds the tensor '{prefix}' twice, so that readers differ in what they take")
            names.add(prefix)
            yield prefix, value
        if not isinstance(value, dict):
            continue
        seen += len(value)
        if depth > MOST_DEPTH or seen > MOST_TENSORS:
            raise ValueError(f"it nests dictionaries more than {MOST_DEPTH} deep, or has over {MOST_TENSORS:,} entries")
        for key, inner in reversed(value.items()):
            name = f"{prefix}.{key}" if prefix else str(key)
            if len(name) > LONGEST_NAME:
                raise ValueError(f"a name has more than {LONGEST_NAME} characters")
            waiting.append((name, inner, depth + 1))
