"""Collectives between ranks, as cells that have gradients.

MindSpore's CPU backend has AllReduce of float32 sums and little else, so on a CPU the other collectives are built from
AllReduce in this file. On Ascend and GPU they are the backend's own operators.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.parallel.mesh import Group


def _has_only_all_reduce() -> bool:
    return ms.get_context("device_target") == "CPU"


class AllReduce(nn.Cell):
    """Sum of a float tensor over the ranks. It has no gradient."""

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
    """The tensors of all ranks, joined along the first axis in the order of the ranks. It has no gradient.

    The emulation uses the same graph on all ranks, and only a constant depends on the rank. With different graphs,
    MindSpore may order the collectives differently on each rank, and the ranks would wait for each other for ever.
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
        # A product with zeros would turn infinite gradients into NaN in the rows of the other ranks.
        spread = ops.where(self.here, self.cast(ops.reshape(x, (1, -1)), ms.float32), self.nothing)
        return self.cast(ops.reshape(self.gather(spread), (-1,) + x.shape[1:]), x.dtype)


class ReduceScatter(nn.Cell):
    """This rank's part, along the first axis, of the sum over the ranks. It has no gradient."""

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
    """Return one of equal parts along the first axis."""
    width = x.shape[0] // parts
    others = x.shape[1:]
    return ops.Slice()(x, (index * width,) + (0,) * len(others), (width,) + others)


class Copy(nn.Cell):
    """Identity before work that is split over the ranks. The gradient is the sum over the ranks (Megatron-LM's f)."""

    def __init__(self, group: Group):
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.sum(dout),)


class Reduce(nn.Cell):
    """Sum over the ranks after work that is split. The gradient passes unchanged (Megatron-LM's g)."""

    def __init__(self, group: Group):
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (dout,)


class Tokens(nn.Cell):
    """Base of the cells that split or join hidden states by tokens, for sequence parallel.

    Whole hidden states are (B * S, H). A rank's own are (B * S / ranks, H): its part of the S tokens of each row.

    Args:
        group: The ranks that share the tokens.
        length: Tokens of a row, S.
    """

    def __init__(self, group: Group, length: int):
        super().__init__()
        self.index, self.size, self.length = group.index, group.size, length
        self.gather = AllGather(group)
        self.scatter = ReduceScatter(group)

    def own(self, x: Tensor) -> Tensor:
        """Return this rank's tokens of whole hidden states."""
        return part_of(self._by_rank(x), self.index, self.size)

    def all(self, x: Tensor) -> Tensor:
        """Gather the tokens of all ranks."""
        rows = x.shape[0] * self.size // self.length
        parts = ops.reshape(self.gather(x), (self.size, rows, -1, x.shape[1]))
        return ops.reshape(ops.transpose(parts, (1, 0, 2, 3)), (-1, x.shape[1]))

    def own_of_sum(self, x: Tensor) -> Tensor:
        """Return this rank's tokens of the sum over the ranks."""
        return self.scatter(self._by_rank(x))

    def _by_rank(self, x: Tensor) -> Tensor:
        parts = ops.reshape(x, (x.shape[0] // self.length, self.size, -1, x.shape[1]))
        return ops.reshape(ops.transpose(parts, (1, 0, 2, 3)), (-1, x.shape[1]))


class SplitTokens(Tokens):
    """Takes this rank's tokens of hidden states that are equal on all ranks. The gradient is gathered."""

    def construct(self, x: Tensor) -> Tensor:
        return self.own(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.all(dout),)


class JoinTokens(Tokens):
    """Gathers the tokens of all ranks for work that all ranks repeat. The gradient is this rank's tokens."""

    def construct(self, x: Tensor) -> Tensor:
        return self.all(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.own(dout),)


class CopyTokens(Tokens):
    """Gathers the tokens of all ranks for work that is split. The gradient is this rank's tokens of the sum."""

    def construct(self, x: Tensor) -> Tensor:
        return self.all(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.own_of_sum(dout),)


class ReduceTokens(Tokens):
    """Takes this rank's tokens of the sum over the ranks, after work that is split. The gradient is gathered."""

    def construct(self, x: Tensor) -> Tensor:
        return self.own_of_sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.all(dout),)


class GatherLast(nn.Cell):
    """Gathers the columns (N, C / ranks) of all ranks as (N, C), for work that all ranks repeat."""

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
    """Sends part j of the tensor, along the first axis, to rank j. What rank i sends becomes part i."""

    def __init__(self, group: Group):
        super().__init__()
        self.index, self.size = group.index, group.size
        self.emulated = _has_only_all_reduce()
        self.exchange = AllGather(group) if self.emulated else ops.AlltoAll(group.size, 0, 0, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.swap(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x: the same exchange takes each part back."""
        return (self.swap(dout),)

    def swap(self, x: Tensor) -> Tensor:
        """Exchange the parts."""
        if not self.emulated:
            return self.exchange(x)
        everything = ops.reshape(self.exchange(x), (self.size, self.size, -1))
        mine = ops.Slice()(everything, (0, self.index, 0), (self.size, 1, everything.shape[2]))
        return ops.reshape(mine, x.shape)


class NeighbourExchange(nn.Cell):
    """Exchange between two neighbouring pipeline stages: hidden states go up while gradients go down.

    Inputs:
        What this rank sends, of any shape; zeros if it has nothing to send.

    Returns:
        What the other rank sent.
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
    """Applies one cell or primitive, and then a second cell to its result."""

    def __init__(self, first: nn.Cell | ops.Primitive, second: nn.Cell):
        super().__init__()
        self.first, self.second = first, second

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.second(self.first(*inputs))


class BeforeFirst(nn.Cell):
    """Applies `before` to the first input of a cell, and then the cell."""

    def __init__(self, before: nn.Cell, cell: nn.Cell):
        super().__init__()
        self.before, self.cell = before, cell

    def construct(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.cell(self.before(x), *others)
