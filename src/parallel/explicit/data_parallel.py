"""Data parallel: gradients are summed over the ranks. With ZeRO-1 each rank gets only the part that it updates."""

from collections import defaultdict
from collections.abc import Sequence
from math import prod

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.common.settings import TrainingConfig
from src.nn.operators import after, for_each, pick
from src.nn.optimizer import Optimizer
from src.nn.parameters import WORD_TABLE
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.explicit.collectives import AllGather, AllReduce, Chain, ReduceScatter
from src.parallel.mesh import Group, Mesh
from src.parallel.plan import sharding

LARGEST_MESSAGE = 1 << 25  # most elements that are sent together


def attach_to_loss(network: PanguAlphaWithLoss, mesh: Mesh) -> None:
    """Make the loss this rank's share of the batch's loss: summed over the ranks, it is the mean over all tokens."""
    group = mesh.group("data", "expert")
    if group.size > 1:
        network.count = Chain(network.count, AllReduce(group))
        network.balance_loss_factor /= group.size


class Layout:
    """Which ranks hold the same part of a parameter as this rank, and which part of it this rank updates.

    Args:
        mesh: This rank's place.
        config: The whole model.
        names: Names of the parameters that this rank holds.
    """

    def __init__(self, mesh: Mesh, config: PanguAlphaConfig, names: Sequence[str]):
        self.mesh, self.names = mesh, list(names)
        self.shapes = sharding.parameter_shapes(config)
        self.boxes = {name: sharding.optimizer_box(name, self.shapes[name], mesh.plan, mesh.at) for name in names}
        self.held = {name: sharding.box(name, self.shapes[name], mesh.plan, mesh.at) for name in names}

    def replicas(self, name: str) -> Group:
        """Return the ranks that hold the same part of a parameter, but have different data."""
        axes = ("data",) if sharding.is_expert(name) else ("data", "expert")
        return self.mesh.group(*axes)

    def is_cut(self, name: str) -> bool:
        """Return whether each of the replicas updates only a part of what it holds."""
        return self.boxes[name] != self.held[name]

    def part(self, name: str, held: np.ndarray) -> np.ndarray:
        """Return the part that this rank updates, from the array that it holds."""
        return np.ascontiguousarray(held[self.boxes[name].within(self.held[name]).index])

    def is_counted(self, name: str, group: Group) -> bool:
        """Return whether this rank adds its part to a global sum: it is the first one of a group to hold the part."""
        plan, mine = self.mesh.plan, self.boxes[name]
        for rank in group.ranks[: group.index]:
            at = plan.coordinates(rank)
            if (
                at.pipeline in sharding.stages(name, plan)
                and sharding.optimizer_box(name, self.shapes[name], plan, at) == mine
            ):
                return False
        return True


class Messages(nn.Cell):
    """Sends many tensors in few large messages, one after the other.

    Without an order of their own, the ranks of a group could send different messages at the same time.

    Args:
        send: Collective that turns a message (rows, elements) into one of (rows', elements).
        rows: Rows of an input message. Each tensor fills some columns, as `rows` equal parts.
        shapes: Shapes of the input tensors.
        out_shapes: Shapes of the output tensors.

    Inputs:
        tensors: What is sent.
        sent: Results of what was sent before, which the first message waits for.

    Returns:
        The output tensors.
    """

    def __init__(self, send: nn.Cell, rows: int, shapes: Sequence[Sequence[int]], out_shapes: Sequence[Sequence[int]]):
        super().__init__()
        self.send, self.rows = send, rows
        self.widths = tuple(prod(shape) // rows for shape in shapes)
        self.out_shapes = tuple(map(tuple, out_shapes))
        bundles, room = [], 0
        for i, width in enumerate(self.widths):
            if not bundles or width * rows > room:
                bundles.append(())
                room = LARGEST_MESSAGE
            bundles[-1] += (i,)
            room -= width * rows
        self.bundles = tuple(bundles)
        self.begins = tuple(sum(self.widths[k] for k in bundle if k < i) for bundle in bundles for i in bundle)
        self.slice = ops.Slice()  # MindSpore needs ten times as long to compile an index expression

    def construct(self, tensors: tuple[Tensor, ...], sent: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        results = ()
        for bundle in self.bundles:
            columns = ops.concat(for_each(self._columns, pick(tensors, bundle)), 1)
            message = self.send(after(sent + results, columns))
            results += for_each(ops.partial(self._tensor, message), bundle)
        return results

    def _columns(self, x: Tensor) -> Tensor:
        return ops.reshape(ops.cast(x, ms.float32), (self.rows, -1))

    def _tensor(self, message: Tensor, i: int) -> Tensor:
        columns = self.slice(message, (0, self.begins[i]), (message.shape[0], self.widths[i]))
        return ops.reshape(columns, self.out_shapes[i])


class ReduceGradients(nn.Cell):
    """Turns a rank's gradients of what it holds into float32 gradients of the whole batch, of what it updates."""

    def __init__(self, layout: Layout, sequence_parallel: bool = False):
        super().__init__()
        mesh, names = layout.mesh, layout.names
        first, last = (mesh.plan.at_stage(mesh.rank, stage) for stage in (0, mesh.plan.last_stage))
        self.tied = names.index(WORD_TABLE) if mesh.rank in (first, last) and first != last else -1
        if self.tied >= 0:
            self.sum_tied = AllReduce(mesh.group_of((first, last)))
        # With sequence parallel, a parameter that is applied to a rank's own tokens has only their gradient.
        self.partial = tuple(i for i, name in enumerate(names) if sequence_parallel and sharding.is_of_own_tokens(name))
        if self.partial:
            shapes = [layout.held[names[i]].shape for i in self.partial]
            self.sum_partial = Messages(AllReduce(mesh.group("tensor")), 1, shapes, shapes)
            self.after_partial = _replaced(len(names), self.partial)
        kinds = defaultdict(list)
        for i, name in enumerate(names):
            if layout.replicas(name).size > 1:
                kinds[layout.replicas(name), layout.is_cut(name)].append(i)
        self.members = tuple(map(tuple, kinds.values()))
        messages = []
        for (group, is_cut), members in kinds.items():
            send, rows = (ReduceScatter(group), group.size) if is_cut else (AllReduce(group), 1)
            messages.append(
                Messages(
                    send,
                    rows,
                    [layout.held[names[i]].shape for i in members],
                    [layout.boxes[names[i]].shape for i in members],
                )
            )
        self.messages = nn.CellList(messages)
        self.places = _replaced(len(names), [i for members in self.members for i in members])

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sent, received = (), ()
        if self.tied >= 0:
            total = self.sum_tied(gradients[self.tied])
            sent = (total,)
            gradients = gradients[: self.tied] + (total,) + gradients[self.tied + 1 :]
        if self.partial:
            totals = self.sum_partial(pick(gradients, self.partial), sent)
            gradients, sent = pick(gradients + totals, self.after_partial), sent + totals
        for kind, send in enumerate(self.messages):
            received += send(pick(gradients, self.members[kind]), sent + received)
        return pick(gradients + received, self.places)


def _replaced(number: int, replaced: Sequence[int]) -> tuple[int, ...]:
    """Return what to pick of values and of new ones after them, so that the new ones replace the values at places.

    Args:
        number: Number of the values.
        replaced: The place of each new value.
    """
    places = list(range(number))
    for new, place in enumerate(replaced):
        places[place] = number + new
    return tuple(places)


class GlobalNormOfRanks(nn.Cell):
    """Global norm of gradients that are spread over the ranks. A part that several ranks have counts once.

    Args:
        norm: Norm of a tuple of tensors.
        layout: What this rank updates.
    """

    def __init__(self, norm: nn.Cell, layout: Layout):
        super().__init__()
        axes = ("pipeline", "expert", "tensor") + (("data",) if layout.mesh.plan.optimizer_shard else ())
        group = layout.mesh.group(*axes)
        self.norm = norm
        self.counted = tuple(i for i, name in enumerate(layout.names) if layout.is_counted(name, group))
        self.sum = AllReduce(group) if group.size > 1 else nn.Identity()

    def construct(self, gradients: tuple[Tensor, ...]) -> Tensor:
        # Without experts in its stage, a rank may count nothing, because other ranks hold the same parts.
        own = ops.square(self.norm(pick(gradients, self.counted))) if self.counted else Tensor(0.0, ms.float32)
        # ops.depend puts this sum after the gradients' own messages, so that all ranks have the same order.
        return ops.sqrt(self.sum(ops.depend(own, gradients)))


class ShardedOptimizer(nn.Cell):
    """Optimizer that updates this rank's parts and then gathers the parts of all replicas (ZeRO-1, arXiv 1910.02054).

    Args:
        config: Settings of the optimizer.
        parameters: Parameters that this rank holds.
        layout: Which part of each parameter this rank updates.
    """

    def __init__(self, config: TrainingConfig, parameters: Sequence[Parameter], layout: Layout):
        super().__init__(auto_prefix=False)
        self.layout = layout
        names = layout.names
        updated = [self._part(parameter) if layout.is_cut(parameter.name) else parameter for parameter in parameters]
        self.inner = Optimizer(config, updated, names)
        kinds = defaultdict(list)
        for i, name in enumerate(names):
            if layout.is_cut(name):
                kinds[layout.replicas(name)].append(i)
        self.held = tuple(ParameterTuple([parameters[i] for i in members]) for members in kinds.values())
        self.parts = tuple(ParameterTuple([updated[i] for i in members]) for members in kinds.values())
        self.messages = nn.CellList(
            [
                Messages(
                    AllGather(group), 1, [updated[i].shape for i in members], [parameters[i].shape for i in members]
                )
                for group, members in kinds.items()
            ]
        )

    def _part(self, held: Parameter) -> Parameter:
        value = self.layout.part(held.name, held.asnumpy())
        return Parameter(Tensor(value, held.dtype), name=f"part.{held.name}", requires_grad=False)

    @property
    def state(self) -> list[Parameter]:
        """Moments of the parts that this rank updates."""
        return self.inner.state

    def refresh(self) -> None:
        """Copy the parts again from the parameters, after these were loaded."""
        for held, parts in zip(self.held, self.parts, strict=True):
            for whole, part in zip(held, parts, strict=True):
                part.set_data(Tensor(self.layout.part(whole.name, whole.asnumpy()), part.dtype))

    def construct(
        self, gradients: tuple[Tensor, ...], factor: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor
    ) -> tuple[Tensor, ...]:
        updated = self.inner(gradients, factor, lr, beta1_power, beta2_power)
        done = ()
        for kind, send in enumerate(self.messages):
            parts = for_each(ops.partial(after, updated), self.parts[kind])
            done += for_each(_assign, self.held[kind], send(parts, done))
        return updated + done


def _assign(parameter: Parameter, x: Tensor) -> Tensor:
    return ops.assign(parameter, ops.cast(x, parameter.dtype))
