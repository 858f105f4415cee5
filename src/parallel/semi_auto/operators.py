"""Operators with shard strategies, in the place of those that the compiler would not look into or that need several."""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.nn.dropout import Dropout
from src.nn.operators import FastGelu

ROW = 3  # of the kinds of operands


class Pointwise(nn.Cell):
    """An operator of one or two operands, element by element, whose leading axes are cut into `parts`.

    An operator has one strategy, which depends on its operands' shapes: so this keeps one operator for each kind. What
    is broadcast along a cut axis is a number, a row or a column.

    Args:
        make: Makes the operator.
        parts: Of axis 0, axis 1, ...; all others are whole.
        operands: 1 or 2; what follows them (the type of a Cast) has no strategy.
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
        # A row alone stays whole: the compiler would number its parts otherwise than a matrix's, and then gather them.
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
    """Which of Pointwise's strategies: 0 for a number, 1 of one axis, 2 a matrix, 3 a row, 4 a column, 5 and 6."""
    if not isinstance(x, Tensor):
        return 0
    if x.ndim == 2:
        return 3 if x.shape[0] == 1 else 4 if x.shape[1] == 1 else 2
    return x.ndim if x.ndim < 2 else x.ndim + 2


class Normalize(nn.Cell):
    """As `src.nn.operators.Normalize`, by the fused operator; `parts` of the rows (N, H)."""

    def __init__(self, epsilon: float, parts: int):
        super().__init__()
        self.layer_norm = ops.LayerNorm(1, 1, epsilon).shard(((parts, 1), (1,), (1,)))
        self.cast = Pointwise(ops.Cast, parts, operands=1)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        normed, _, _ = self.layer_norm(self.cast(x, ms.float32), gamma, beta)
        return self.cast(normed, x.dtype)


class MaskedSoftmax(nn.Cell):
    """As `src.nn.operators.MaskedSoftmax`, rows cut into `data` and heads into `tensor` parts."""

    def __init__(self, data: int, tensor: int):
        super().__init__()
        self.add = ops.Add().shard(((data, tensor, 1, 1), (data, 1, 1, 1)))
        self.softmax = ops.Softmax(axis=-1).shard(((data, tensor, 1, 1),))

    def construct(self, scores: Tensor, bias: Tensor) -> Tensor:
        return self.softmax(self.add(scores, bias))


class WeightFirst(nn.Cell):
    """x @ weight, called with the weight first, where a FeedForward would have the product transposed."""

    def __init__(self, product: ops.Primitive):
        super().__init__()
        self.product = product

    def construct(self, weight: Tensor, x: Tensor) -> Tensor:
        return self.product(x, weight)


class BiasedColumns(nn.Cell):
    """`activation` of x (N, F) + bias (F,)."""

    def __init__(self, add_bias: ops.Primitive, activation: nn.Cell):
        super().__init__()
        self.add_bias, self.activation = add_bias, activation

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.activation(self.add_bias(x, bias))


class LongRange(nn.Cell):
    """begin, begin + 1, ..., end - 1 as int32, added up in the graph from rows of `width`: a range of that length would
    be computed by the compiler, which would keep hundreds of megabytes of numbers for each layer."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.range = ops.Range().shard(((1,),))
        self.cast = ops.Cast().shard(((1,),))
        self.add = ops.Add().shard(((1, 1), (1, 1)))
        self.reshape = ops.Reshape()

    def construct(self, begin: int, end: int, step: int) -> Tensor:
        rows = self.cast(self.range(begin, end, self.width), ms.int32)
        columns = self.cast(self.range(0, self.width, step), ms.int32)
        return self.reshape(self.add(self.reshape(rows, (-1, 1)), self.reshape(columns, (1, -1))), (-1,))


class CrossEntropy(nn.Cell):
    """As `src.nn.operators.CrossEntropy`, of logits (N, V) cut into `data` x `tensor` parts: of a row three numbers are
    sent, the largest logit, the sum of the exponentials and the label's own logit."""

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
    """In the place of a feed-forward layer's activation, with that strategy. The fused operator is the same
    function."""
    return (ops.FastGeLU if isinstance(cell, FastGelu) else ops.GeLU)().shard((strategy,))


def shard_dropout(cell: Dropout, width: int, *parts: int) -> None:
    """A dropout, of an array in `parts`; `width` is that of LongRange."""
    for name, make in (
        ("add", ops.Add),
        ("mul", ops.Mul),
        ("xor", ops.BitwiseXor),
        ("bit_and", ops.BitwiseAnd),
        ("shift", ops.RightShift),
        ("greater_equal", ops.GreaterEqual),
    ):
        setattr(cell, name, Pointwise(make, *parts))
    cell.cast = Pointwise(ops.Cast, *parts, operands=1)
    cell.range = LongRange(width)
