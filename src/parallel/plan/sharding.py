"""Which slice of each parameter a rank holds, by the parameter's official name alone.

The one table that execution, checkpoints, the plan's arithmetic and the tests go by. Nothing here needs MindSpore.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE, block_number, layer_prefixes
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.plan import Coordinates, Plan

EXPERT = ".output.ffn."

# The axis that tensor parallel slices, by the end of a name; what isn't here is whole on every rank. Matrices into
# heads and hidden units are sliced by columns (their biases with them), those out of them by rows.
_TENSOR_AXES = {
    "attention.dense1.weight": 0,
    "attention.dense1.bias": 0,  # stored (out, in)
    "attention.dense2.weight": 0,
    "attention.dense2.bias": 0,
    "attention.dense3.weight": 0,
    "attention.dense3.bias": 0,
    "attention.projection.weight": 0,
    "output.mapping.weight": 1,
    "output.mapping.bias": 0,
    "output.projection.weight": 0,
    "output.ffn.mapping.weight": 2,
    "output.ffn.mapping.bias": 1,  # axis 0 is the expert
    "output.ffn.projection.weight": 1,
    WORD_TABLE: 0,
}
_OF_OWN_TOKENS = (
    "layernorm.gamma",
    "layernorm.beta",
    "layernorm1.gamma",
    "layernorm1.beta",
    "layernorm2.gamma",
    "layernorm2.beta",
    "attention.projection.bias",
    "output.projection.bias",
)
_ENDS = sorted(_TENSOR_AXES, key=len, reverse=True)


@dataclass(frozen=True)
class Box:
    """Part of an array: elements begin[i] to end[i] - 1 of each axis i."""

    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Box":
        """All of an array of that shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return tuple(end - begin for begin, end in zip(self.begin, self.end, strict=True))

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def index(self) -> tuple[slice, ...]:
        """For array[box.index]."""
        return tuple(map(slice, self.begin, self.end))

    def part(self, axis: int, which: int, parts: int) -> "Box":
        """One of equal parts along an axis."""
        width = (self.end[axis] - self.begin[axis]) // parts
        begin, end = list(self.begin), list(self.end)
        begin[axis] += which * width
        end[axis] = begin[axis] + width
        return Box(tuple(begin), tuple(end))

    def overlap(self, other: "Box") -> "Box | None":
        """What both cover; None where nothing."""
        begin = tuple(map(max, self.begin, other.begin))
        end = tuple(map(min, self.end, other.end))
        return Box(begin, end) if all(b < e for b, e in zip(begin, end, strict=True)) else None

    def within(self, outer: "Box") -> "Box":
        """The same part, counted from where `outer` begins."""
        return Box(
            tuple(b - o for b, o in zip(self.begin, outer.begin, strict=True)),
            tuple(e - o for e, o in zip(self.end, outer.begin, strict=True)),
        )


def tensor_axis(name: str, vocab_parallel: bool = True) -> int | None:
    """The axis of a parameter that tensor parallel slices; None where each rank holds it whole."""
    if name == WORD_TABLE and not vocab_parallel:
        return None
    return next((_TENSOR_AXES[end] for end in _ENDS if name.endswith(end)), None)


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the experts, one of them for each index of its axis 0."""
    return EXPERT in name


def is_of_own_tokens(name: str) -> bool:
    """Whether a parameter, whole on each tensor-parallel rank, meets only its own tokens with sequence parallel."""
    return name.endswith(_OF_OWN_TOKENS)


def stages(name: str, plan: Plan) -> tuple[int, ...]:
    """The stages that hold a parameter: one, but for the word embedding, which is the head's matrix too."""
    last = plan.pipeline - 1
    if name == WORD_TABLE:
        return (0, last) if last else (0,)
    block = block_number(name)
    if block is not None:
        return (plan.stage_of_layer(block),)
    return (0,) if name.startswith("backbone.embedding.") else (last,)


def box(name: str, shape: Sequence[int], plan: Plan, at: Coordinates) -> Box:
    """The part of a parameter of that (whole) shape that the rank there holds, if its stage holds it at all."""
    part = Box.whole(shape)
    if is_expert(name):
        part = part.part(0, at.expert, plan.expert)
    axis = tensor_axis(name, plan.vocab_parallel)
    return part if axis is None else part.part(axis, at.tensor, plan.tensor)


def replicas(name: str, plan: Plan, at: Coordinates) -> tuple[int, int]:
    """Which of how many ranks of its stage with that same part, but data of their own, the rank there is."""
    return (at.data, plan.data) if is_expert(name) else (at.data * plan.expert + at.expert, plan.data_ranks)


def optimizer_box(name: str, shape: Sequence[int], plan: Plan, at: Coordinates) -> Box:
    """The part of a parameter whose moments the rank there keeps: with optimizer_shard its share of the rows of what it
    holds (of a single expert: of that one's rows), where they divide; else all of that. The replicas' parts follow each
    other in memory."""
    held = box(name, shape, plan, at)
    which, parts = replicas(name, plan, at)
    rows = next((axis for axis, size in enumerate(held.shape) if size > 1), None)
    if not plan.optimizer_shard or rows is None or held.shape[rows] % parts:
        return held
    return held.part(rows, which, parts)


def parameter_shapes(config: PanguAlphaConfig) -> dict[str, tuple[int, ...]]:
    """All parameters of a model, by their official names, in the order of the model's own list."""
    hidden, ffn = config.hidden_size, config.ffn_hidden_size

    def layer(prefix: str, number: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"layernorm1.gamma": (hidden,), "layernorm1.beta": (hidden,)}
        for name in ("dense1", "dense2", "dense3", "projection"):
            shapes |= {f"attention.{name}.weight": (hidden, hidden), f"attention.{name}.bias": (hidden,)}
        shapes |= {"layernorm2.gamma": (hidden,), "layernorm2.beta": (hidden,)}
        if config.has_experts(number):
            experts = config.num_experts
            shapes |= {
                "output.router.dense.weight": (hidden, experts),
                "output.ffn.mapping.weight": (experts, hidden, ffn),
                "output.ffn.mapping.bias": (experts, ffn),
                "output.ffn.projection.weight": (experts, ffn, hidden),
                "output.ffn.projection.bias": (experts, hidden),
            }
        else:
            shapes |= {
                "output.mapping.weight": (hidden, ffn),
                "output.mapping.bias": (ffn,),
                "output.projection.weight": (ffn, hidden),
                "output.projection.bias": (hidden,),
            }
        return {f"{prefix}{name}": shape for name, shape in shapes.items()}

    shapes: dict[str, tuple[int, ...]] = {
        WORD_TABLE: (config.vocab_size, hidden),
        POSITION_TABLE: (config.seq_length, hidden),
    }
    *blocks, query_layer = layer_prefixes(config.num_layers)
    for number, prefix in enumerate(blocks):
        shapes |= layer(prefix, number)
    shapes |= {
        "backbone.layernorm.gamma": (hidden,),
        "backbone.layernorm.beta": (hidden,),
        QUERY_TABLE: (config.seq_length, hidden),
    }
    return shapes | layer(query_layer, config.num_layers - 1)
