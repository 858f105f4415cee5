"""Which rank does what: the numbering of ranks, their groups, and the layers of each pipeline stage.

Ranks are numbered as MindSpore's semi-automatic parallel numbers the devices of its device matrix. The pipeline stage
changes slowest, then data, then expert, then tensor. So the ranks of a tensor-parallel group are neighbours.
"""

from dataclasses import astuple, dataclass, replace
from itertools import product

from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import PanguAlphaConfig


@dataclass(frozen=True)
class Coordinates:
    """A rank's place in the mesh. Each coordinate counts from 0.

    Args:
        pipeline: Number of the rank's stage.
        data: Number of its replica of the model, experts included.
        expert: Which part of the experts it holds. Ranks of different parts also have different data.
        tensor: Which part of each sliced matrix it holds.
    """

    pipeline: int
    data: int
    expert: int
    tensor: int


AXES = ("pipeline", "data", "expert", "tensor")  # the fields of Coordinates; the first one changes slowest


@dataclass(frozen=True)
class Plan:
    """How a run is spread over pipeline * data * expert * tensor ranks.

    Args:
        pipeline: Number of pipeline stages.
        data: Number of replicas of the model.
        expert: Number of parts that the experts are cut into. Each part has its own data.
        tensor: Number of parts that heads, feed-forward units and vocabulary are cut into.
        optimizer_shard: Each replica keeps and updates only its part of the moments (ZeRO-1).
        num_layers: Number of the model's layers, including the query layer.
        vocab_parallel: Tensor parallel cuts the vocabulary; if false, each tensor-parallel rank has all of it.
    """

    pipeline: int = 1
    data: int = 1
    expert: int = 1
    tensor: int = 1
    optimizer_shard: bool = False
    num_layers: int = 2
    vocab_parallel: bool = True

    @classmethod
    def of(cls, parallel: ParallelConfig, model: PanguAlphaConfig) -> "Plan":
        """Return the plan of a checked configuration."""
        return cls(
            parallel.pipeline,
            parallel.data,
            parallel.expert,
            parallel.tensor,
            parallel.optimizer_shard,
            model.num_layers,
            parallel.vocab_parallel,
        )

    @property
    def world_size(self) -> int:
        """Number of ranks of the run."""
        return self.pipeline * self.data * self.expert * self.tensor

    @property
    def vocab_parts(self) -> int:
        """Number of parts of the vocabulary; each tensor-parallel rank has one of them."""
        return self.tensor if self.vocab_parallel else 1

    @property
    def data_ranks(self) -> int:
        """Number of ranks with different data, among the ranks with the same pipeline and tensor coordinates."""
        return self.data * self.expert

    def data_rank(self, rank: int) -> int:
        """Return which part of a batch a rank computes."""
        at = self.coordinates(rank)
        return at.data * self.expert + at.expert

    def coordinates(self, rank: int) -> Coordinates:
        """Return the coordinates of a rank.

        Raises:
            InputError: There is no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise InputError(f"rank {rank} is outside this plan of {self.world_size} ranks")
        rest, tensor = divmod(rank, self.tensor)
        rest, expert = divmod(rest, self.expert)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(pipeline, data, expert, tensor)

    def rank(self, at: Coordinates) -> int:
        """Return the rank with these coordinates."""
        return ((at.pipeline * self.data + at.data) * self.expert + at.expert) * self.tensor + at.tensor

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """Return the ranks, in order, that differ from `rank` only along the given axes of AXES."""
        at = self.coordinates(rank)
        spans = [
            range(getattr(self, axis)) if axis in axes else [value]
            for axis, value in zip(AXES, astuple(at), strict=True)
        ]
        return tuple(self.rank(Coordinates(*place)) for place in product(*spans))

    def at_stage(self, rank: int, stage: int) -> int:
        """Return the rank of another stage that has the same other coordinates as `rank`."""
        return self.rank(replace(self.coordinates(rank), pipeline=stage))

    def layers(self, stage: int) -> range:
        """Return the layers of a stage. The query layer is the last layer of the last stage.

        If the layers do not divide, the first stages get one more, because the last stage also has the head.
        """
        share, left = divmod(self.num_layers, self.pipeline)
        begin = stage * share + min(stage, left)
        return range(begin, begin + share + (stage < left))

    def stage_of_layer(self, layer: int) -> int:
        """Return the stage that holds a layer."""
        return next(stage for stage in range(self.pipeline) if layer in self.layers(stage))
