"""Parameters in saved files: each file holds a part or all of a parameter, and any other part can be read from them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.nn.parameters import by_official_name
from src.parallel.plan.sharding import Box


@dataclass(frozen=True)
class Slice:
    """Part of a parameter that a file holds.

    Args:
        shape: Shape of the whole parameter.
        dtype: MindSpore's name of the dtype, such as Float32.
        box: Position of the part in the whole.
    """

    shape: tuple[int, ...]
    dtype: str
    box: Box

    def to_json(self) -> dict:
        """Return the entry in layout.json."""
        return {"shape": self.shape, "dtype": self.dtype, "begin": self.box.begin, "end": self.box.end}

    @classmethod
    def from_json(cls, value: dict) -> "Slice":
        """Make a slice from its entry in layout.json."""
        return cls(tuple(value["shape"]), value["dtype"], Box(tuple(value["begin"]), tuple(value["end"])))


class SavedSlices:
    """The parameters of a checkpoint, which files hold whole or in parts. Any part of a parameter can be read.

    Args:
        source: File or folder of the checkpoint, for error messages.
        layout: For each file the slices that it holds, by parameter; None for a file of whole parameters.

    Raises:
        InputError: A file of whole parameters can't be read, or the slices of two files do not fit together.
    """

    def __init__(self, source: Path, layout: Mapping[Path, Mapping[str, Slice] | None]):
        self.source = source
        self._files: dict[str, list[tuple[Path, Slice]]] = {}
        self._indices: dict[Path, dict[str, ckpt_file.Stored]] = {}
        for file, slices in layout.items():
            for name, part in (self._wholes(file) if slices is None else slices).items():
                files = self._files.setdefault(name, [])
                if files and (files[0][1].shape, files[0][1].dtype) != (part.shape, part.dtype):
                    other_file, other = files[0]
                    raise InputError(
                        f"{source}: '{name}' is {part.shape} {part.dtype} in {file.name}, but "
                        f"{other.shape} {other.dtype} in {other_file.name}: they belong to different runs"
                    )
                files.append((file, part))

    def _wholes(self, file: Path) -> dict[str, Slice]:
        return {
            name: Slice(stored.shape, stored.dtype, Box.whole(stored.shape))
            for name, stored in self._index(file).items()
        }

    @property
    def names(self) -> Collection[str]:
        """Names of all parameters and moments."""
        return self._files.keys()

    def whole(self, name: str) -> Slice:
        """Return the whole parameter as a slice."""
        some = self._files[name][0][1]
        return replace(some, box=Box.whole(some.shape))

    def check(self, name: str, box: Box) -> None:
        """Check that part of a parameter can be read.

        Raises:
            InputError: A piece of it is in no file, or a file is missing or does not hold what the layout says.
        """
        for file, part, _ in self._pieces(name, box):
            self._stored(file, name, part)

    def read(self, name: str, box: Box) -> np.ndarray:
        """Read part of a parameter from the files that hold pieces of it.

        Raises:
            InputError: See `check`.
        """
        values = np.empty(box.shape, ckpt_file.DTYPES[self._files[name][0][1].dtype])
        for file, part, common in self._pieces(name, box):
            stored = self._stored(file, name, part)
            values[common.within(box).index] = ckpt_file.read(file, stored, common.within(part.box))
        return values

    def _pieces(self, name: str, box: Box) -> list[tuple[Path, Slice, Box]]:
        """Return (file, its slice, the box to take from it) triples that cover `box`, each element once."""
        pieces, rest = [], [box]
        for file, part in self._files[name]:
            pieces += [(file, part, common) for left in rest if (common := left.overlap(part.box))]
            rest = [box for left in rest for box in _without(left, part.box)]
        if rest:
            held = ", ".join(f"{file.name} has {_range(part.box)}" for file, part in self._files[name][:4])
            raise InputError(f"{self.source}: no file has {_range(rest[0])} of '{name}' ({held})")
        return pieces

    def _stored(self, file: Path, name: str, part: Slice) -> ckpt_file.Stored:
        if not file.is_file():
            raise InputError(f"{file} is missing; it has {_range(part.box)} of '{name}'")
        stored = self._index(file).get(name)
        expected = (part.box.shape, part.dtype)
        if stored is None or (stored.shape, stored.dtype) != expected or stored.dtype not in ckpt_file.DTYPES:
            found = f"{stored.shape} {stored.dtype}" if stored else "none"
            raise InputError(
                f"{file} should have {_range(part.box)} of '{name}', {part.box.shape} {part.dtype}, but "
                f"has {found}: does it belong to another rank or run?"
            )
        return stored

    def _index(self, file: Path) -> dict[str, ckpt_file.Stored]:
        if file not in self._indices:
            stored = ckpt_file.index(file)
            self._indices[file] = {official: stored[name] for official, name in by_official_name(stored, file).items()}
        return self._indices[file]


def _without(box: Box, hole: Box) -> list[Box]:
    """Return boxes that cover `box` except for `hole`."""
    common = box.overlap(hole)
    if common is None:
        return [box]
    left = []
    for axis in range(len(box.begin)):
        for begin, end in ((box.begin[axis], common.begin[axis]), (common.end[axis], box.end[axis])):
            if begin < end:
                left.append(_with_axis(box, axis, begin, end))
        box = _with_axis(box, axis, common.begin[axis], common.end[axis])
    return left


def _with_axis(box: Box, axis: int, begin: int, end: int) -> Box:
    return Box((*box.begin[:axis], begin, *box.begin[axis + 1 :]), (*box.end[:axis], end, *box.end[axis + 1 :]))


def _range(box: Box) -> str:
    return "[" + ", ".join(f"{begin}:{end}" for begin, end in zip(box.begin, box.end, strict=True)) + "]"
