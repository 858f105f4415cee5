"""Which rank does what: the numbering of ranks, their groups, and the layers of each pipeline stage.

The layers are cut into pipeline * virtual_stages chunks, which micro-batches pass in order. A stage holds a chunk of
each lap around the stages. With one virtual stage, a stage is a chunk.

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
        optimizer_shard: Each of several replicas keeps and updates only its part of the moments (ZeRO-1).
        num_layers: Number of the model's layers, including the query layer.
        vocab_parallel: Tensor parallel cuts the vocabulary; if false, each tensor-parallel rank has all of it.
        virtual_stages: Number of chunks of layers on each stage.
        turns_back: Every second lap goes back over the stages, so that two laps make a V (zero_bubble_v).
    """

    pipeline: int = 1
    data: int = 1
    expert: int = 1
    tensor: int = 1
    optimizer_shard: bool = False
    num_layers: int = 2
    vocab_parallel: bool = True
    virtual_stages: int = 1
    turns_back: bool = False

    @classmethod
    def of(cls, parallel: ParallelConfig, model: PanguAlphaConfig) -> "Plan":
        """Return the plan of a checked configuration."""
        return cls(
            parallel.pipeline,
            parallel.data,
            parallel.expert,
            parallel.tensor,
            parallel.optimizer_shard and parallel.data * parallel.expert > 1,
            model.num_layers,
            parallel.vocab_parallel,
            parallel.virtual_stages,
            parallel.pipeline_scheduler == "zero_bubble_v",
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

    @property
    def num_chunks(self) -> int:
        """Number of chunks of layers in the whole model."""
        return self.pipeline * self.virtual_stages

    @property
    def last_stage(self) -> int:
        """Stage of the last chunk, with the query layer and the head. The embedding is always in stage 0."""
        return self.stage_of_chunk(self.num_chunks - 1)

    def chunks(self, stage: int) -> tuple[int, ...]:
        """Return the chunks of a stage, one of each lap."""
        return tuple(chunk for chunk in range(self.num_chunks) if self.stage_of_chunk(chunk) == stage)

    def stage_of_chunk(self, chunk: int) -> int:
        """Return the stage that holds a chunk."""
        lap, place = divmod(chunk, self.pipeline)
        return self.pipeline - 1 - place if self.turns_back and lap % 2 else place

    def layers_of_chunk(self, chunk: int) -> range:
        """Return the layers of a chunk. The query layer is the last layer of the last chunk.

        If the layers do not divide, the first chunks get one more, because the last chunk also has the head.
        """
        share, left = divmod(self.num_layers, self.num_chunks)
        begin = chunk * share + min(chunk, left)
        return range(begin, begin + share + (chunk < left))

    def sends(self, stage: int) -> tuple[int, int]:
        """Return how many chunks of a stage send a micro-batch up to another stage, and its gradient down to one."""
        ends = [(chunk, chunk + 1) for chunk in range(self.num_chunks - 1)]
        crossed = [(self.stage_of_chunk(lower), self.stage_of_chunk(upper)) for lower, upper in ends]
        return (
            sum(lower == stage != upper for lower, upper in crossed),
            sum(upper == stage != lower for lower, upper in crossed),
        )

    def layers(self, stage: int) -> tuple[int, ...]:
        """Return the layers of a stage, in order."""
        return tuple(layer for chunk in self.chunks(stage) for layer in self.layers_of_chunk(chunk))

    def stage_of_layer(self, layer: int) -> int:
        """Return the stage that holds a layer."""
        return self.stage_of_chunk(self.chunk_of_layer(layer))

    def chunk_of_layer(self, layer: int) -> int:
        """Return the chunk that holds a layer."""
        return next(chunk for chunk in range(self.num_chunks) if layer in self.layers_of_chunk(chunk))
