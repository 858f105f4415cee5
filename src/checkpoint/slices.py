"""Who holds which part of each parameter: the ranks that save and load, and the files that were saved.

Parameters go by their official names, the moments of one by adam_m.NAME and adam_v.NAME.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.parallel.plan import sharding
from src.parallel.plan.plan import Coordinates, Plan
from src.parallel.plan.sharding import Box

MOMENTS = ("adam_m.", "adam_v.")


def parameter_of(name: str) -> str:
    """The parameter whose moments have that name, or that is itself named so."""
    return name.partition(".")[2] if name.startswith(MOMENTS) else name


@dataclass(frozen=True)
class Holder:
    """A rank of a run, and what it holds.

    Args:
        plan: How the run is spread.
        rank: Which of its ranks.
        shapes: Whole shapes of all parameters by name, as sharding.parameter_shapes gives them; not needed by one rank.
        all_true: Meets the other ranks: whether all of them gave True.
    """

    plan: Plan = Plan()
    rank: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    all_true: Callable[[bool], bool] = bool

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        self.all_true(True)

    def place(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Box]:
        """The whole shape of a parameter or moment, and which part of it is the array of `shape` that the rank has."""
        if self.plan.world_size == 1:
            return shape, Box.whole(shape)
        box = self.box(name)
        if box.shape != shape:
            raise ValueError(f"rank {self.rank} holds {box.shape} of '{name}', not {shape}")
        return self.shapes[parameter_of(name)], box

    def box(self, name: str) -> Box:
        """The part of a parameter or moment that the rank holds, if its stage holds it at all."""
        return self._box_at(name, self.plan.coordinates(self.rank))

    def _box_at(self, name: str, at: Coordinates) -> Box:
        cut = sharding.optimizer_box if name.startswith(MOMENTS) else sharding.box
        parameter = parameter_of(name)
        return cut(parameter, self.shapes[parameter], self.plan, at)

    def writes(self, name: str) -> bool:
        """Whether the rank is the lowest of those that hold this same part of a parameter or moment.

        They differ in their stage or in some other coordinates; the lowest has the first stage, and 0 in the others.
        """
        if self.plan.world_size == 1:
            return True
        at = self.plan.coordinates(self.rank)
        if at.pipeline != sharding.stages(parameter_of(name), self.plan)[0]:
            return False
        lower = [replace(at, **{axis: 0}) for axis in ("data", "expert", "tensor") if getattr(at, axis)]
        return all(self._box_at(name, other) != self.box(name) for other in lower)


@dataclass(frozen=True)
class Slice:
    """What a file holds of a parameter.

    Args:
        shape: Of the whole parameter.
        dtype: MindSpore's name of it, such as Float32.
        box: The part.
    """

    shape: tuple[int, ...]
    dtype: str
    box: Box

    def to_json(self) -> dict:
        """As layout.json has it."""
        return {"shape": self.shape, "dtype": self.dtype, "begin": self.box.begin, "end": self.box.end}

    @classmethod
    def from_json(cls, value: dict) -> "Slice":
        """The slice of `to_json`."""
        return cls(tuple(value["shape"]), value["dtype"], Box(tuple(value["begin"]), tuple(value["end"])))


class SavedSlices:
    """Parameters in files, each a part or all of it, to be read in any other parts.

    Args:
        source: The file or folder that it is, for messages.
        layout: What each file holds, by name; None where that is whole parameters.

    Raises:
        InputError: A file of whole parameters can't be read, or two files have parts of different wholes.
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
                        f"{other.shape} {other.dtype} in {other_file.name}: they are of different runs"
                    )
                files.append((file, part))

    def _wholes(self, file: Path) -> dict[str, Slice]:
        return {
            name: Slice(stored.shape, stored.dtype, Box.whole(stored.shape))
            for name, stored in self._index(file).items()
        }

    @property
    def names(self) -> Collection[str]:
        """Of all parameters and moments."""
        return self._files.keys()

    def whole(self, name: str) -> Slice:
        """All of a parameter."""
        some = self._files[name][0][1]
        return replace(some, box=Box.whole(some.shape))

    def check(self, name: str, box: Box) -> None:
        """See that a part of a parameter can be read.

        Raises:
            InputError: Some of it is in no file, or a file is missing or holds something else than it should.
        """
        for file, part, _ in self._pieces(name, box):
            self._stored(file, name, part)

    def read(self, name: str, box: Box) -> np.ndarray:
        """A part of a parameter, from the files that have some of it.

        Raises:
            InputError: See `check`.
        """
        values = np.empty(box.shape, ckpt_file.DTYPES[self._files[name][0][1].dtype])
        for file, part, common in self._pieces(name, box):
            stored = self._stored(file, name, part)
            values[common.within(box).index] = ckpt_file.read(file, stored, common.within(part.box))
        return values

    def _pieces(self, name: str, box: Box) -> list[tuple[Path, Slice, Box]]:
        """(file, what it holds, what to take of that), which together make the box, each element once."""
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
                f"has {found}: is it another rank's or another run's file?"
            )
        return stored

    def _index(self, file: Path) -> dict[str, ckpt_file.Stored]:
        if file not in self._indices:
            self._indices[file] = {_official_name(name): stored for name, stored in ckpt_file.index(file).items()}
        return self._indices[file]


def _official_name(name: str) -> str:
    for table in ("word_embedding", "position_embedding"):
        name = name.replace(f"backbone.{table}.", f"backbone.embedding.{table}.")
    return name


def _without(box: Box, hole: Box) -> list[Box]:
    """What is left of a box, as boxes."""
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
