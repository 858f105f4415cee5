"""What a compiled graph holds and sends, read from the text that MindSpore's compiler writes."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from src.parallel.semi_auto.dry_run.liveness import Alive, alive

OPERATIONS = ("AllReduce", "AllGather", "ReduceScatter", "AlltoAll", "Send", "Receive")
_COLLECTIVE = re.compile(rf"  %\d+\([^=]*\) = (?:PrimFunc_)?({'|'.join(OPERATIONS)})\(")
_OPERATOR = re.compile(r"^  %\w+\([^=]*\) = (?:PrimFunc_)?(\w+)\(", re.MULTILINE)
_PARAMETER = re.compile(r"%para\d+_(\S+): <(?:Ref\[)?Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")
_TENSOR = re.compile(r"Tensor\[(\w+)\]\]?, \(([\d, ]*)\)")
_CALLS = re.compile(r"(?:= call @(\S+?)\(|\[@(?:Partial|FuncUnion)\((.*)\)\]\()")
SLICED = "recompute_slice_allgather"  # name of messages that gather an activation after each rank kept a part of it
_SIZES = {"Float32": 4, "Int32": 4, "Float16": 2, "BFloat16": 2, "Bool": 1, "Int64": 8}


@dataclass(frozen=True)
class Array:
    """A parameter as a rank holds it.

    Args:
        shape: Shape of the rank's slice.
        dtype: MindSpore's name of the dtype, such as Float32.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of the slice."""
        return _bytes(self.shape, self.dtype)


@dataclass(frozen=True)
class Collective:
    """A collective or message of a graph.

    Args:
        operation: One of OPERATIONS.
        ranks: All ranks of the group.
        part: Part of the model that it belongs to: "layer 3", "embedding", "head and loss", "pipeline", "batch",
            "norm", ...; "activations" for gathers of kept activations of any layer.
        phase: forward, backward, weights (gathers of updated rows), gradients or update.
        bytes: Size of the array of an AllReduce, of the input of a ReduceScatter, AlltoAll or Send, and of the output
            of the others.
    """

    operation: str
    ranks: tuple[int, ...]
    part: str
    phase: str
    bytes: int


@dataclass
class Graph:
    """A rank's graph.

    Args:
        parameters: Parameters by name.
        collectives: Number of calls of each collective in one run of the graph.
        operators: Number of calls of each operator in one run of the graph, by MindSpore's name.
        alive: What the graph keeps alive at once, beside the parameters.
    """

    parameters: dict[str, Array]
    collectives: Counter[Collective]
    operators: Counter[str] = field(default_factory=Counter)
    alive: Alive = Alive(None, reason="its text was not read")


def read_graph(path: Path, num_layers: int) -> Graph:
    """Read a graph from its text. A subgraph that is called for each micro-batch counts once a call.

    Args:
        path: File that MindSpore writes after its pass `validate`.
        num_layers: Number of the model's layers. The query layer is the last one.
    """
    text = path.read_text(encoding="utf-8")
    head, *bodies = re.split(r"^subgraph @", text, flags=re.MULTILINE)
    entry = _only(r"# IR entry: @(\S+)", head)
    parameters = {name: Array(_shape(shape), dtype) for name, dtype, shape in _PARAMETER.findall(head)}
    graphs = {body[: body.index("(")]: body for body in bodies}
    times: Counter[str] = Counter()
    _count_calls(entry, graphs, times)
    nodes = [(times[name], node) for name, body in graphs.items() for node in _nodes(body, num_layers)]
    parts = {node.unique: node.part for _, node in nodes if node.is_forward}
    collectives: Counter[Collective] = Counter()
    for number, node in nodes:
        collectives[node.told(parts)] += number
    operators: Counter[str] = Counter()
    for name, body in graphs.items():
        for operator in _OPERATOR.findall(body):
            operators[operator] += times[name]
    return Graph(parameters, collectives, operators, alive(text))


def _count_calls(name: str, graphs: dict[str, str], times: Counter[str]) -> None:
    times[name] += 1
    for direct, partial in _CALLS.findall(graphs[name]):
        for called in [direct] if direct else re.findall(r"@?([^\s(),@]+_\d+)", partial):
            if called in graphs:
                _count_calls(called, graphs, times)


@dataclass
class _Node:
    """A collective in the text. A forward message and the message of its gradient have the same `unique`."""

    operation: str
    ranks: tuple[int, ...]
    bytes: int
    scope: str
    instance: str
    unique: str
    parameter: str
    num_layers: int

    @property
    def is_forward(self) -> bool:
        return not self.scope.startswith("Gradients/")

    @property
    def is_of_weights(self) -> bool:
        return "mirror" in self.instance or "parallel_optimizer" in self.instance

    @property
    def part(self) -> str:
        if self.operation in ("Send", "Receive"):
            return "pipeline"
        place = f"{self.parameter} {self.scope}"
        layer = re.search(r"blocks(?:-CellList/|\.)(\d+)[-.]", place)
        if layer:
            return f"layer {layer[1]}"
        for mark, part in (
            ("top_query_layer", f"layer {self.num_layers - 1}"),
            ("embedding", "embedding"),
            ("micro_inputs-", "batch"),
            ("interleave_inputs-", "batch"),
            ("global_norm-", "norm"),
            ("is_finite-", "norm"),
            ("layernorm", "final LayerNorm"),
        ):
            if mark in place:
                return part
        return "head and loss"

    def told(self, parts: dict[str, str]) -> Collective:
        """Return the Collective of this node. `parts` has the part of each forward message, by its unique name."""
        if self.is_of_weights:
            phase = "gradients" if self.operation != "AllGather" else "weights"
            # The compiler puts the message of the tied word table's gradient beside the head.
            part = "embedding" if self.part == "head and loss" else self.part
            return Collective(self.operation, self.ranks, part, phase, self.bytes)
        if self.instance == SLICED:
            return Collective(self.operation, self.ranks, "activations", "backward", self.bytes)
        if self.is_forward:
            phase = "update" if self.part == "norm" else "forward"
            return Collective(self.operation, self.ranks, self.part, phase, self.bytes)
        return Collective(self.operation, self.ranks, parts.get(self.unique, self.part), "backward", self.bytes)


def _only(pattern: str, text: str) -> str:
    """Return the group of a pattern that must be in a text."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in {text[:200]}")
    return match[1]


def _nodes(body: str, num_layers: int) -> Iterator[_Node]:
    lines = body.splitlines()
    defined = {line[2 : line.index("(")]: line for line in lines if line.startswith("  %") and "(" in line}
    for number, line in enumerate(lines):
        match = _COLLECTIVE.match(line)
        if not match:
            continue
        comes_out = match[1] in ("AllGather", "Receive")
        dtype, shape = _TENSOR.findall(lines[number + 1].partition(" -> ")[2 if comes_out else 0])[0]
        scope = next(
            (found[1] for one in lines[number + 1 : number + 4] if (found := re.search(r"scope: \((.*)\)", one))), ""
        )
        named = "group_rank_ids" if "group_rank_ids: (" in line else "rank_list"
        ranks = _only(rf"{named}: \(([\d, ]*)\)", line)
        instance = re.search(r"instance name: (\S+?)}", line)
        unique = re.search(r"forward_comm_node_unique_id: \"(\d+)\"", line)
        yield _Node(
            match[1],
            _shape(ranks),
            _bytes(_shape(shape), dtype),
            scope,
            instance[1] if instance else "",
            unique[1] if unique else "",
            _parameter(line, defined),
            num_layers,
        )


def _parameter(line: str, defined: dict[str, str]) -> str:
    """Return the parameter that a message sends, or sends the gradient sum of; an empty string for another message.

    It follows the operand back through operators that compute nothing from it.
    """
    while True:
        operand = re.search(r" = \w+\((%\w+?)(?:_([\w.]+))?[,)]", line)
        if operand is None:
            return ""
        if operand[2]:
            return operand[2]
        line = defined.get(operand[1], "")
        if not re.search(r" = (PrimFunc_Cast|Depend|Load|Receive|AllGather|AllReduce|ReduceScatter)\(", line):
            return ""


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    size = _SIZES[dtype]
    for number in shape:
        size *= number
    return size
