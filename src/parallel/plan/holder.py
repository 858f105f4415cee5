"""Which rank holds, and which rank writes, each part of the parameters and of the optimizer's moments.

Parameters have their official names. The moments of a parameter NAME are `adam_m.NAME` and `adam_v.NAME`. Nothing here
needs MindSpore.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

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
