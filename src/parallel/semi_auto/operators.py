"""Operators with shard strategies.

They replace cells that the compiler can't look into, and operators that need more than one strategy.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.nn.dropout import Dropout
from src.nn.operators import FastGelu
from src.nn.product_mask import ProductMask

ROW = 3  # kind of an operand (1, N); see _kind


class Pointwise(nn.Cell):
    """An elementwise operator with one or two operands, cut into `parts` along the leading axes.

    An operator has one strategy, and the right one depends on the shapes of the operands. So this cell keeps one
    operator for each kind of operand. A number, a row or a column is broadcast along a cut axis.

    Args:
        make: Returns a new operator.
        parts: Number of parts of axis 0, axis 1, ...; the other axes are whole.
        operands: Number of tensor operands, 1 or 2. What follows them (the dtype of a Cast) has no strategy.
    """

    def __init__(self, make: Callable[[], ops.Primitive], *parts: int, operands: int = 2):
        super().__init__()
        first, second, third, fourth = (*parts, 1, 1, 1)[:4]
        strategies = (
            (),
            (first,),
            (first, second),
            (1, second),
            (first, 1),
            (first, second, third),
            (first, second, third, fourth),
        )
        # A row without a second operand stays whole. The compiler numbers its parts differently from those of a matrix,
        # and would gather them.
        alone = (*strategies[:ROW], (1, 1), *strategies[ROW + 1 :])
        self.operators = (
            tuple(make().shard((one,)) for one in alone)
            if operands == 1
            else tuple(
                tuple(make().shard((one, other) if other else (alone[kind], other)) for other in strategies)
                for kind, one in enumerate(strategies)
            )
        )
        self.operands = operands

    def construct(self, x: Tensor | float, y: object = None) -> Tensor:
        if self.operands == 1:
            return self.operators[_kind(x)](x) if y is None else self.operators[_kind(x)](x, y)
        return self.operators[_kind(x)][_kind(y)](x, y)


def _kind(x: object) -> int:
    """Return the kind of an operand, which is its index in Pointwise's strategies.

    A number is 0, a vector 1, a matrix 2, a row (1, N) 3, a column (N, 1) 4; tensors of 3 and 4 axes are 5 and 6.
    """
    if not isinstance(x, Tensor):
        return 0
    if x.ndim == 2:
        return 3 if x.shape[0] == 1 else 4 if x.shape[1] == 1 else 2
    return x.ndim if x.ndim < 2 else x.ndim + 2


class Normalize(nn.Cell):
    """Same as `src.nn.operators.Normalize`, with the fused operator. Rows of (N, H) are cut into `parts`."""

    def __init__(self, epsilon: float, parts: int):
        super().__init__()
        self.layer_norm = ops.LayerNorm(1, 1, epsilon).shard(((parts, 1), (1,), (1,)))
        self.cast = Pointwise(ops.Cast, parts, operands=1)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        normed, _, _ = self.layer_norm(self.cast(x, ms.float32), gamma, beta)
        return self.cast(normed, x.dtype)


class MaskedSoftmax(nn.Cell):
    """Same as `src.nn.operators.MaskedSoftmax`. Rows are cut into `data` parts and heads into `tensor` parts."""

    def __init__(self, data: int, tensor: int):
        super().__init__()
        self.add = ops.Add().shard(((data, tensor, 1, 1), (data, 1, 1, 1)))
        self.softmax = ops.Softmax(axis=-1).shard(((data, tensor, 1, 1),))

    def construct(self, scores: Tensor, bias: Tensor) -> Tensor:
        return self.softmax(self.add(scores, bias))


class WeightFirst(nn.Cell):
    """x @ weight, called as (weight, x). It replaces the transposed product of a FeedForward."""

    def __init__(self, product: ops.Primitive):
        super().__init__()
        self.product = product

    def construct(self, weight: Tensor, x: Tensor) -> Tensor:
        return self.product(x, weight)


class BiasedColumns(nn.Cell):
    """Activation of x (N, F) + bias (F,)."""

    def __init__(self, add_bias: ops.Primitive, activation: nn.Cell):
        super().__init__()
        self.add_bias, self.activation = add_bias, activation

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.activation(self.add_bias(x, bias))


class CrossEntropy(nn.Cell):
    """Same as `src.nn.operators.CrossEntropy`, for logits (N, V) that are cut into `data` x `tensor` parts.

    Each row sends three numbers: the largest logit, the sum of the exponentials, and the label's logit.
    """

    def __init__(self, data: int, tensor: int):
        super().__init__()
        self.max = ops.ReduceMax(keep_dims=True).shard(((data, tensor),))
        self.sub = ops.Sub().shard(((data, tensor), (data, 1)))
        self.exp = ops.Exp().shard(((data, tensor),))
        self.sum = ops.ReduceSum().shard(((data, tensor),))
        self.log = ops.Log().shard(((data,),))
        self.one_hot = ops.OneHot().shard(((data, tensor), (), ()))
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        self.mul = ops.Mul().shard(((data, tensor), (data, tensor)))
        self.picked = ops.ReduceSum().shard(((data, tensor),))
        self.difference = ops.Sub().shard(((data,), (data,)))

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        shifted = self.sub(logits, ops.stop_gradient(self.max(logits, 1)))
        denominator = self.log(self.sum(self.exp(shifted), 1))
        target = self.one_hot(labels, logits.shape[1], self.on, self.off)
        return self.difference(denominator, self.picked(self.mul(shifted, target), 1))


def activation(cell: nn.Cell, strategy: tuple[int, ...] | ms.Layout) -> ops.Primitive:
    """Return the fused operator of a feed-forward layer's activation, with a strategy. It is the same function."""
    return (ops.FastGeLU if isinstance(cell, FastGelu) else ops.GeLU)().shard((strategy,))


def shard_dropout(cell: Dropout, data: int, *parts: int) -> None:
    """Give a dropout the mask of accelerators, and strategies.

    Args:
        cell: The dropout.
        data: Number of parts of the batch. They cut the nodes of the mask's tree, which are few.
        parts: Number of parts of each axis of the elements.
    """
    mask = ProductMask(cell.rate)
    for name, make in (
        ("xor", ops.BitwiseXor),
        ("mul", ops.Mul),
        ("bit_and", ops.BitwiseAnd),
        ("add", ops.Add),
        ("floor_div", ops.FloorDiv),
    ):
        setattr(mask, name, Pointwise(make, data))
    mask.last_xor = ops.BitwiseXor().shard((parts, (1,)))
    mask.last_mul = ops.Mul().shard((parts, parts))
    mask.last_and = ops.BitwiseAnd().shard((parts, ()))
    mask.last_greater_equal = ops.GreaterEqual().shard((parts, ()))
    cell.mask = mask
    cell.mul = Pointwise(ops.Mul, *parts)
    cell.cast = Pointwise(ops.Cast, *parts, operands=1)
