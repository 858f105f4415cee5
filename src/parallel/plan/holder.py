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
    """Return the parameter that a name belongs to. The name is that of a moment, or of the parameter itself."""
    return name.partition(".")[2] if name.startswith(MOMENTS) else name


@dataclass(frozen=True)
class Holder:
    """A rank of a run, and what it holds.

    Args:
        plan: How the run is spread.
        rank: Number of the rank.
        shapes: Shapes of all whole parameters, from sharding.parameter_shapes. A run of one rank needs none.
        all_true: All-reduce of a flag: returns True if every rank passed True.
    """

    plan: Plan = Plan()
    rank: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    all_true: Callable[[bool], bool] = bool

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.all_true(True)

    def place(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Box]:
        """Return the whole shape of a parameter or moment, and the part of it that the rank holds.

        Args:
            name: Name of the parameter or moment.
            shape: Shape of the array that the rank holds.

        Raises:
            ValueError: The rank should hold an array of another shape.
        """
        if self.plan.world_size == 1:
            return shape, Box.whole(shape)
        box = self.box(name)
        if box.shape != shape:
            raise ValueError(f"rank {self.rank} holds {box.shape} of '{name}', not {shape}")
        return self.shapes[parameter_of(name)], box

    def box(self, name: str) -> Box:
        """Return the part of a parameter or moment that the rank holds, if its stage holds the parameter."""
        return self._box_at(name, self.plan.coordinates(self.rank))

    def _box_at(self, name: str, at: Coordinates) -> Box:
        cut = sharding.optimizer_box if name.startswith(MOMENTS) else sharding.box
        parameter = parameter_of(name)
        return cut(parameter, self.shapes[parameter], self.plan, at)

    def writes(self, name: str) -> bool:
        """Return whether this rank saves its part of a parameter or moment.

        Among the ranks that hold the same part, the lowest rank saves it.
        """
        if self.plan.world_size == 1:
            return True
        at = self.plan.coordinates(self.rank)
        if at.pipeline != sharding.stages(parameter_of(name), self.plan)[0]:
            return False
        lower = [replace(at, **{axis: 0}) for axis in ("data", "expert", "tensor") if getattr(at, axis)]
        return all(self._box_at(name, other) != self.box(name) for other in lower)
