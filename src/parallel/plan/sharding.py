"""Which slice of each parameter a rank holds, as a function of the parameter's official name and the plan.

Execution, checkpoints, the plan's arithmetic and the tests all use this one table. MindSpore is not imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE, block_number, layer_prefixes
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.plan import Coordinates, Plan

EXPERT = ".output.ffn."
CACHE_BLOCK = 16  # tokens of a block of a KV cache in blocks (src/parallel/paged_attention.py)
UNCUT = ".output.ffn.projection.bias"  # the compiler does not cut the moments of this bias; see compiled_box

# The axis that tensor parallel slices, by the end of a parameter's name. All other parameters are whole on every rank.
# Matrices into heads and hidden units are sliced by columns, with their biases; those out of them are sliced by rows.
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


def cache_blocks(tokens: int) -> int:
    """Return the blocks of a row of `tokens` tokens in a KV cache in blocks."""
    return -(-tokens // CACHE_BLOCK)


@dataclass(frozen=True)
class Box:
    """Part of an array: elements begin[i] to end[i] - 1 along each axis i."""

    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Box":
        """Return the box of a whole array of a shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each axis."""
        return tuple(end - begin for begin, end in zip(self.begin, self.end, strict=True))

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def index(self) -> tuple[slice, ...]:
        """Slices that take this part out of an array, as in `array[box.index]`."""
        return tuple(map(slice, self.begin, self.end))

    def part(self, axis: int, which: int, parts: int) -> "Box":
        """Return part number `which` of equal parts along an axis."""
        width = (self.end[axis] - self.begin[axis]) // parts
        begin, end = list(self.begin), list(self.end)
        begin[axis] += which * width
        end[axis] = begin[axis] + width
        return Box(tuple(begin), tuple(end))

    def overlap(self, other: "Box") -> "Box | None":
        """Return what both boxes cover; None if they have no element in common."""
        begin = tuple(map(max, self.begin, other.begin))
        end = tuple(map(min, self.end, other.end))
        return Box(begin, end) if all(b < e for b, e in zip(begin, end, strict=True)) else None

    def within(self, outer: "Box") -> "Box":
        """Return the same part, with indices that count from the beginning of `outer`."""
        return Box(
            tuple(b - o for b, o in zip(self.begin, outer.begin, strict=True)),
            tuple(e - o for e, o in zip(self.end, outer.begin, strict=True)),
        )


def tensor_axis(name: str, vocab_parallel: bool = True) -> int | None:
    """Return the axis of a parameter that tensor parallel slices; None if each rank holds it whole."""
    if name == WORD_TABLE and not vocab_parallel:
        return None
    return next((_TENSOR_AXES[end] for end in _ENDS if name.endswith(end)), None)


def is_expert(name: str) -> bool:
    """Return whether a parameter belongs to the experts. Index e of its axis 0 is expert e."""
    return EXPERT in name


def is_of_own_tokens(name: str) -> bool:
    """Return whether sequence parallel applies a parameter to the rank's own tokens only.

    Such a parameter is whole on each tensor-parallel rank, so its gradients are summed over the ranks.
    """
    return name.endswith(_OF_OWN_TOKENS)


@lru_cache(maxsize=1 << 14)
def stages(name: str, plan: Plan) -> tuple[int, ...]:
    """Return the stages that hold a parameter. It is one stage, except for the word table, which the head also uses."""
    last = plan.last_stage
    if name == WORD_TABLE:
        return (0, last) if last else (0,)
    block = block_number(name)
    if block is not None:
        return (plan.stage_of_layer(block),)
    return (0,) if name.startswith("backbone.embedding.") else (last,)


@lru_cache(maxsize=1 << 14)
def box(name: str, shape: Sequence[int], plan: Plan, at: Coordinates) -> Box:
    """Return the part of a parameter that a rank holds, if its stage holds the parameter.

    Args:
        name: Official name of the parameter.
        shape: Shape of the whole parameter.
        plan: How the run is spread.
        at: The rank's place.
    """
    part = Box.whole(shape)
    if is_expert(name):
        part = part.part(0, at.expert, plan.expert)
    axis = tensor_axis(name, plan.vocab_parallel)
    return part if axis is None else part.part(axis, at.tensor, plan.tensor)


def replicas(name: str, plan: Plan, at: Coordinates) -> tuple[int, int]:
    """Return (index, count) of a rank among the ranks that hold the same part of a parameter but have other data."""
    return (at.data, plan.data) if is_expert(name) else (at.data * plan.expert + at.expert, plan.data_ranks)


@lru_cache(maxsize=1 << 14)
def optimizer_box(name: str, shape: Sequence[int], plan: Plan, at: Coordinates) -> Box:
    """Return the part of a parameter that a rank updates. It keeps the moments of this part.

    Without optimizer_shard this is all that the rank holds. With it, the replicas share out the rows of what they hold
    (the rows of the expert, if a rank holds a single one), if the rows divide. The parts of the replicas follow each
    other in memory.
    """
    held = box(name, shape, plan, at)
    which, parts = replicas(name, plan, at)
    rows = next((axis for axis, size in enumerate(held.shape) if size > 1), None)
    if not plan.optimizer_shard or rows is None or held.shape[rows] % parts:
        return held
    return held.part(rows, which, parts)


def compiled_box(name: str, shape: Sequence[int], plan: Plan, at: Coordinates) -> Box:
    """Same as optimizer_box, for semi_auto: the last bias of experts stays uncut.

    The compiler can cut this bias only over the tensor-parallel ranks as well, so strategies.py turns the cut off.
    """
    return (box if name.endswith(UNCUT) else optimizer_box)(name, shape, plan, at)


def parameter_shapes(config: PanguAlphaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters of a model, by official name, in the order of the model's own list."""
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
