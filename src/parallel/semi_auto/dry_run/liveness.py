"""Bytes of the tensors that a compiled graph keeps alive at once, read from the compiler's text.

An operator runs as soon as its operands are there, first come, first served, as in MindSpore's execution order "bfs".
A subgraph runs as a whole where it is called, so what its caller keeps at that time counts too. This is not the memory
of a device: workspaces and fragmentation do not count, and the order on a device may be another one.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

SIZES = {"Bool": 1, "Int8": 1, "UInt8": 1, "Float16": 2, "BFloat16": 2, "Int32": 4, "UInt32": 4, "Float32": 4}
SIZES |= {"Int64": 8, "UInt64": 8, "Float64": 8}
VIEWS = ("Reshape", "ExpandDims", "Squeeze", "Depend", "Load")  # the result is the first operand
IN_PLACE = ("Adam", "ApplyGradientDescent")  # their results are the parameters
_PHASES = (("apply_gradients", "update"), ("Gradients/", "backward"))  # by a mark in the scope; else forward
_NODE = re.compile(r"^  (?:(%\d+)\([^=]*\) = (?:PrimFunc_)?)?(call @|[\w%]+)(.*)$")
_TENSOR = re.compile(r"Tensor\[(\w+)\]\]?(?:\*(\d+))?")


class Unclear(Exception):
    """A graph whose tensors can't be followed. The message says why."""


class Node(NamedTuple):
    """An operator of a graph: its name, operation, operands as text, result types as text, and scope."""

    name: str
    operation: str
    operands: tuple[str, ...]
    result: str
    scope: str


class Closure(NamedTuple):
    """A subgraph, and the values of its first parameters."""

    graph: str
    values: tuple


class Branches(NamedTuple):
    """Subgraphs of which one will run. Both are counted, one after the other."""

    closures: tuple[Closure, ...]


@dataclass(frozen=True)
class Alive:
    """What a graph keeps alive at the moment when it is most.

    Args:
        bytes: Bytes of all tensors; None if they can't be followed.
        kinds: Bytes by phase and operation, the largest first.
        reason: Why there is no number.
    """

    bytes: int | None
    kinds: tuple[tuple[str, int], ...] = ()
    reason: str = ""


def alive(text: str) -> Alive:
    """Return what a graph keeps alive at once, beside the parameters that a rank holds between steps.

    Args:
        text: What MindSpore writes after its pass `validate`.
    """
    head, *bodies = re.split(r"^subgraph @", text, flags=re.MULTILINE)
    entry = re.search(r"# IR entry: (@\S+)", head)
    try:
        run = _Run({"@" + body[: body.index("(")]: _Graph(body) for body in bodies})
        inputs = {
            line.partition(":")[0]: run.made_by("input", line)
            for line in head.splitlines()
            if line.startswith("%para") and ": <Tensor[" in line  # a parameter is a Ref, and counts nothing
        }
        result = run.call(entry[1] if entry else "", dict(inputs))
        run.read([*inputs.values(), result])  # the caller keeps them until the end
        return run.most()
    except Unclear as error:
        return Alive(None, reason=str(error))


class _Graph:
    """A subgraph: the names of its parameters, its operators in the order in which they run, and its result."""

    def __init__(self, body: str):
        lines = body.splitlines()
        self.parameters = _split(lines[0])
        nodes = {node.name: node for node in _nodes(lines)}
        self.result = nodes.pop("").operands[0]
        users: dict[str, list[str]] = {name: [] for name in nodes}
        waits = {}
        for name, node in nodes.items():
            operands = [operand for operand in node.operands if operand in nodes]
            waits[name] = len(operands)
            for operand in operands:
                users[operand].append(name)
        ready = deque(name for name, number in waits.items() if not number)
        self.order = []
        while ready:
            self.order.append(nodes[ready.popleft()])
            for user in users[self.order[-1].name]:
                waits[user] -= 1
                if not waits[user]:
                    ready.append(user)


class _Run:
    """Runs graphs operator after operator, and notes when each tensor is made and when it is last read.

    The value of an operand is the number of a tensor, a tuple of values, a Closure, or Branches. An empty tuple stands
    for what takes no memory here: parameters, constants, and results that are written in place.
    """

    def __init__(self, graphs: dict[str, _Graph]):
        self.graphs = graphs
        self.running: list[str] = []
        self.now = 0
        self.sizes: list[int] = []
        self.kinds: list[str] = []
        self.made: list[int] = []
        self.last: list[int] = []

    def call(self, name: str, values: dict) -> object:
        """Run a graph, given the values of its parameters, and return the value of its result."""
        if name in self.running:
            raise Unclear(f"the graph {name} calls itself")
        if name not in self.graphs:
            raise Unclear(f"there is no graph {name}")
        self.running.append(name)
        for node in self.graphs[name].order:
            values[node.name] = self.value_of(node, values)
        self.running.pop()
        return values.get(self.graphs[name].result, ())

    def value_of(self, node: Node, values: dict) -> object:
        """Run an operator, and return the value of its result."""
        self.now += 1
        operands = [values.get(operand, ()) for operand in node.operands]
        match node.operation:
            case "MakeTuple":
                return tuple(operands)
            case "UpdateState":
                return ()
            case "TupleGetItem":
                held = operands[0]
                return held[int(node.operands[1][4:-1])] if isinstance(held, tuple) and held else held
            case "Partial":
                return Closure(node.operands[0], tuple(operands[1:]))
            case "Switch":
                return Branches(tuple(operands[1:]))
            case "call":
                called = node.operands[0]
                return self.enter(Closure(called, ()) if called in self.graphs else operands[0], operands[1:])
        self.read(operands[:1] if node.operation in VIEWS else operands)
        if node.operation in VIEWS:
            return operands[0]
        if node.operation in IN_PLACE:
            return ()
        phase = next((phase for mark, phase in _PHASES if mark in node.scope), "forward")
        return self.made_by(f"{phase} {node.operation}", node.result)

    def enter(self, called: object, operands: list) -> object:
        """Call a closure, or one branch after the other."""
        if isinstance(called, Branches):
            return [self.enter(closure, operands) for closure in called.closures][0]
        if not isinstance(called, Closure) or called.graph not in self.graphs:
            raise Unclear("a called function is not known before the graph runs")
        parameters = self.graphs[called.graph].parameters
        return self.call(called.graph, dict(zip(parameters, (*called.values, *operands), strict=False)))

    def made_by(self, kind: str, result: str) -> object:
        """Make the tensors that an operator returns."""
        if "<Ref[" in result or "is_inplace" in result:
            return ()
        made = []
        for size in _sizes(result):
            self.sizes.append(size)
            self.kinds.append(kind)
            self.made.append(self.now)
            self.last.append(self.now)
            made.append(len(self.sizes) - 1)
        return tuple(made) if "<Tuple[" in result else made[0] if made else ()

    def read(self, value: object) -> None:
        """Note that the tensors of a value are read now."""
        if isinstance(value, int):
            self.last[value] = self.now
        elif isinstance(value, (tuple, list)):
            for one in value:
                self.read(one)

    def most(self) -> Alive:
        """Return what is alive at the moment when it is most."""
        change = [0] * (self.now + 2)
        for size, made, last in zip(self.sizes, self.made, self.last, strict=True):
            change[made] += size
            change[last + 1] -= size
        alive = most = at = 0
        for moment, size in enumerate(change):
            alive += size
            if alive > most:
                most, at = alive, moment
        kinds: Counter[str] = Counter()
        for size, kind, made, last in zip(self.sizes, self.kinds, self.made, self.last, strict=True):
            if made <= at <= last:
                kinds[kind] += size
        return Alive(most, tuple(kinds.most_common()))


def _nodes(lines: list[str]) -> Iterator[Node]:
    for number, line in enumerate(lines):
        match = _NODE.match(line)
        if not match or not (match[1] or match[2] == "Return"):
            continue
        name, operation, rest = match.groups()
        called = ()
        if operation == "call @":  # call @NAME(operands)
            called, rest = ("@" + rest[: rest.index("(")],), rest[rest.index("(") :]
        elif operation.startswith("%"):  # %7[@Partial(@NAME)](operands)
            called, rest = (operation,), rest[rest.index("](") + 1 :]
        following = lines[number + 1 : number + 4]
        scope = next((one.partition("scope: (")[2] for one in following if "scope: (" in one), "")
        operands = called + _split(rest)
        yield Node(name or "", "call" if called else operation, operands, following[0].partition(" -> ")[2], scope)


def _split(text: str) -> tuple[str, ...]:
    """Return the operands in the first parentheses of a text."""
    found, depth, begin = [], 0, text.index("(") + 1
    for at in range(begin - 1, len(text)):
        character = text[at]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if depth == 0 or (depth == 1 and character == ","):
            found.append(text[begin:at].strip())
            begin = at + 1
            if depth == 0:
                break
    return tuple(one for one in found if one)


def _sizes(result: str) -> list[int]:
    """Return the bytes of each tensor in the text of a type, such as <Tensor[Float32], (2, 3)>."""
    kinds = [kind for kind, number in _TENSOR.findall(result) for _ in range(int(number or 1))]
    shapes = re.findall(r"\(([\d, ]*)\)", result.partition("TupleShape(")[2] if "TupleShape(" in result else result)
    unknown = {kind for kind in kinds if kind not in SIZES}
    if unknown or len(shapes) < len(kinds):
        raise Unclear(f"the size of {result[:80]} is not known")
    return [
        SIZES[kind] * prod(int(number) for number in shape.split(",") if number.strip())
        for kind, shape in zip(kinds, shapes, strict=False)
    ]
