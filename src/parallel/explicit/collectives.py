"""What ranks send each other, as cells with gradients.

MindSpore's CPU backend has AllReduce of float32 sums and little else; here, and only here, the others are made of it.
On Ascend and GPU they are the backend's own.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.parallel.mesh import Group


def _has_only_all_reduce() -> bool:
    return ms.get_context("device_target") == "CPU"


class AllReduce(nn.Cell):
    """The sum over the ranks, of any float tensor; without a gradient of its own."""

    def __init__(self, group: Group):
        super().__init__()
        self.only_float32 = _has_only_all_reduce()
        self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        if self.only_float32:
            return self.cast(self.reduce(self.cast(x, ms.float32)), x.dtype)
        return self.reduce(x)


class AllGather(nn.Cell):
    """The ranks' tensors one after the other along the first axis; without a gradient of its own.

    Where it is emulated, the graph is the same on all ranks, and only a constant tells them apart: of two graphs that
    differ, MindSpore may put the collectives in another order, and each rank would wait for another one.
    """

    def __init__(self, group: Group):
        super().__init__()
        self.size = group.size
        self.emulated = _has_only_all_reduce()
        self.gather = AllReduce(group) if self.emulated else ops.AllGather(group.name)
        self.here = Tensor(np.arange(group.size)[:, None] == group.index)
        self.nothing = Tensor(0.0, ms.float32)
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        if not self.emulated:
            return self.gather(x)
        # Not a product with zeros: infinite gradients would make NaN of what the others send.
        spread = ops.where(self.here, self.cast(ops.reshape(x, (1, -1)), ms.float32), self.nothing)
        return self.cast(ops.reshape(self.gather(spread), (-1,) + x.shape[1:]), x.dtype)


class ReduceScatter(nn.Cell):
    """This rank's part, along the first axis, of the sum over the ranks; without a gradient of its own."""

    def __init__(self, group: Group):
        super().__init__()
        self.index, self.size = group.index, group.size
        self.emulated = _has_only_all_reduce()
        self.scatter = AllReduce(group) if self.emulated else ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if not self.emulated:
            return self.scatter(x)
        return part_of(self.scatter(x), self.index, self.size)


def part_of(x: Tensor, index: int, parts: int) -> Tensor:
    """One of equal parts along the first axis."""
    width = x.shape[0] // parts
    others = x.shape[1:]
    return ops.Slice()(x, (index * width,) + (0,) * len(others), (width,) + others)


class Copy(nn.Cell):
    """The same tensor goes into work that is split over the ranks: backwards, the sum of what they send back."""

    def __init__(self, group: Group):
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.sum(dout),)


class Reduce(nn.Cell):
    """The sum of the ranks' shares of a result that all go on with."""

    def __init__(self, group: Group):
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (dout,)


class Tokens(nn.Cell):
    """Base of what happens to hidden states of which each rank has its tokens of every row (sequence parallel).

    Whole, they are (B * S, H); a rank's are (B * S / ranks, H): the tokens of its part of each row's S.

    Args:
        group: The ranks.
        length: S.
    """

    def __init__(self, group: Group, length: int):
        super().__init__()
        self.index, self.size, self.length = group.index, group.size, length
        self.gather = AllGather(group)
        self.scatter = ReduceScatter(group)

    def own(self, x: Tensor) -> Tensor:
        """This rank's tokens of all."""
        return part_of(self._by_rank(x), self.index, self.size)

    def all(self, x: Tensor) -> Tensor:
        """All tokens, from each rank's own."""
        rows = x.shape[0] * self.size // self.length
        parts = ops.reshape(self.gather(x), (self.size, rows, -1, x.shape[1]))
        return ops.reshape(ops.transpose(parts, (1, 0, 2, 3)), (-1, x.shape[1]))

    def own_of_sum(self, x: Tensor) -> Tensor:
        """This rank's tokens of the sum over the ranks."""
        return self.scatter(self._by_rank(x))

    def _by_rank(self, x: Tensor) -> Tensor:
        parts = ops.reshape(x, (x.shape[0] // self.length, self.size, -1, x.shape[1]))
        return ops.reshape(ops.transpose(parts, (1, 0, 2, 3)), (-1, x.shape[1]))


class SplitTokens(Tokens):
    """What all ranks have alike -> this rank's tokens."""

    def construct(self, x: Tensor) -> Tensor:
        return self.own(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.all(dout),)


class JoinTokens(Tokens):
    """This rank's tokens -> all, for work that all ranks do alike."""

    def construct(self, x: Tensor) -> Tensor:
        return self.all(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.own(dout),)


class CopyTokens(Tokens):
    """This rank's tokens -> all, for work that is split over the ranks."""

    def construct(self, x: Tensor) -> Tensor:
        return self.all(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.own_of_sum(dout),)


class ReduceTokens(Tokens):
    """The ranks' shares of all tokens -> this rank's tokens of the sum."""

    def construct(self, x: Tensor) -> Tensor:
        return self.own_of_sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.all(dout),)


class GatherLast(nn.Cell):
    """The ranks' columns (N, C / size) side by side (N, C), for work that all ranks do alike."""

    def __init__(self, group: Group):
        super().__init__()
        self.gather = AllGather(group)
        self.index, self.size = group.index, group.size

    def construct(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        parts = ops.reshape(self.gather(x), (self.size, rows, -1))
        return ops.reshape(ops.transpose(parts, (1, 0, 2)), (rows, -1))

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (ops.Slice()(dout, (0, self.index * x.shape[1]), x.shape),)


class AllToAll(nn.Cell):
    """Part j, along the first axis, of this rank's tensor goes to rank j; what comes from rank i becomes part i."""

    def __init__(self, group: Group):
        super().__init__()
        self.index, self.size = group.index, group.size
        self.emulated = _has_only_all_reduce()
        self.exchange = AllGather(group) if self.emulated else ops.AlltoAll(group.size, 0, 0, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.swap(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x: everything goes back the way it came."""
        return (self.swap(dout),)

    def swap(self, x: Tensor) -> Tensor:
        """The exchange itself."""
        if not self.emulated:
            return self.exchange(x)
        everything = ops.reshape(self.exchange(x), (self.size, self.size, -1))
        mine = ops.Slice()(everything, (0, self.index, 0), (self.size, 1, everything.shape[2]))
        return ops.reshape(mine, x.shape)


class NeighbourExchange(nn.Cell):
    """Two pipeline stages hand each other hidden states (up) and their gradients (down) at the same time.

    Inputs:
        What this rank sends, of any shape; zeros where it sends nothing.

    Returns:
        What the other one sent.
    """

    def __init__(self, group: Group):
        super().__init__()
        self.index = group.index
        self.emulated = _has_only_all_reduce()
        if self.emulated:
            self.gather = AllGather(group)
        else:
            self.exchange = ops.AlltoAll(group.size, 0, 0, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.emulated:
            return part_of(self.gather(x), 1 - self.index, 2)
        return part_of(self.exchange(ops.concat((x, x))), 1 - self.index, 2)


class Chain(nn.Cell):
    """One cell, or primitive, after the other."""

    def __init__(self, first: nn.Cell | ops.Primitive, second: nn.Cell):
        super().__init__()
        self.first, self.second = first, second

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.second(self.first(*inputs))


class BeforeFirst(nn.Cell):
    """A cell whose first input goes through another one before."""

    def __init__(self, before: nn.Cell, cell: nn.Cell):
        super().__init__()
        self.before, self.cell = before, cell

    def construct(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.cell(self.before(x), *others)
