"""Which rank does what: the mesh, its groups, and the layers of each stage.

Ranks are numbered as MindSpore's semi-automatic parallel numbers the devices of its device matrix: the pipeline stage
changes slowest, then data, then expert, then tensor parallel, whose ranks are neighbours on one machine.
"""

from dataclasses import astuple, dataclass, replace
from itertools import product

from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import PanguAlphaConfig


@dataclass(frozen=True)
class Coordinates:
    """A rank's place in the mesh, each from 0.

    Args:
        pipeline: Stage.
        data: Which replica of the experts (and of all else) it works for.
        expert: Which part of the experts it holds; it has data of its own as well.
        tensor: Which part of each sliced matrix it holds.
    """

    pipeline: int
    data: int
    expert: int
    tensor: int


AXES = ("pipeline", "data", "expert", "tensor")  # of Coordinates, slowest first


@dataclass(frozen=True)
class Plan:
    """How a run is spread over pipeline * data * expert * tensor ranks.

    Args:
        pipeline: Stages.
        data: Replicas.
        expert: Parts of the experts, each with data of its own.
        tensor: Parts of heads, feed-forward units and vocabulary.
        optimizer_shard: Each replica keeps and updates only its part of the moments (ZeRO-1).
        num_layers: Of the model, the query layer counted.
        vocab_parallel: Whether tensor parallel cuts the vocabulary; else each part has all of it.
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
        """The plan of a checked configuration."""
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
        """Ranks of the run."""
        return self.pipeline * self.data * self.expert * self.tensor

    @property
    def vocab_parts(self) -> int:
        """Parts of the vocabulary, each on one of the tensor-parallel ranks."""
        return self.tensor if self.vocab_parallel else 1

    @property
    def data_ranks(self) -> int:
        """Ranks (of each stage and tensor part) with data of their own."""
        return self.data * self.expert

    def data_rank(self, rank: int) -> int:
        """Which part of a batch this rank computes."""
        at = self.coordinates(rank)
        return at.data * self.expert + at.expert

    def coordinates(self, rank: int) -> Coordinates:
        """Where a rank stands.

        Raises:
            InputError: No such rank.
        """
        if not 0 <= rank < self.world_size:
            raise InputError(f"rank {rank} is outside this plan of {self.world_size} ranks")
        rest, tensor = divmod(rank, self.tensor)
        rest, expert = divmod(rest, self.expert)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(pipeline, data, expert, tensor)

    def rank(self, at: Coordinates) -> int:
        """The rank that stands there."""
        return ((at.pipeline * self.data + at.data) * self.expert + at.expert) * self.tensor + at.tensor

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """The ranks, in order, whose coordinates are those of `rank` on all but these of AXES."""
        at = self.coordinates(rank)
        spans = [
            range(getattr(self, axis)) if axis in axes else [value]
            for axis, value in zip(AXES, astuple(at), strict=True)
        ]
        return tuple(self.rank(Coordinates(*place)) for place in product(*spans))

    def at_stage(self, rank: int, stage: int) -> int:
        """The rank that does at another stage what `rank` does at its own."""
        return self.rank(replace(self.coordinates(rank), pipeline=stage))

    def layers(self, stage: int) -> range:
        """The layers of a stage, the query layer being the last of all; what does not divide goes to the first stages,
        since the last one has the head as well."""
        share, left = divmod(self.num_layers, self.pipeline)
        begin = stage * share + min(stage, left)
        return range(begin, begin + share + (stage < left))

    def stage_of_layer(self, layer: int) -> int:
        """The stage that holds a layer."""
        return next(stage for stage in range(self.pipeline) if layer in self.layers(stage))
