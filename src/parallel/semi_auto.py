"""MindSpore's own way to spread a model, semi-automatic parallel: shard strategies for every operator, from outside.

The graph is of the whole model and the whole batch; from the strategies the compiler slices parameters and tensors and
puts the messages in. The plan is that of the explicit backend: the same mesh, the same numbering, the same slices.
Operators with gradients of their own for a CPU, which the compiler would not look into, make way for plain ones.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.dropout import Dropout
from src.operators import FastGelu
from src.pangu_alpha import (
    Attention,
    Block,
    Embedding,
    EmbeddingTable,
    FeedForward,
    LayerNorm,
    Linear,
    PanguAlphaModel,
    PanguAlphaWithLoss,
)
from src.parallel.plan import Plan
from src.parallel.sharding import WORD_TABLE

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
        strategies = ((), (first,), (first, second), (1, second), (first, 1), (first, second, third),
                      (first, second, third, fourth))
        # A row alone stays whole: the compiler would number its parts otherwise than a matrix's, and then gather them.
        alone = (*strategies[:ROW], (1, 1), *strategies[ROW + 1:])
        self.operators = tuple(make().shard((one,)) for one in alone) if operands == 1 else tuple(
            tuple(make().shard((one, other) if other else (alone[kind], other)) for other in strategies)
            for kind, one in enumerate(strategies))
        self.operands = operands

    def construct(self, x: Tensor | float, y: object = None) -> Tensor:
        if self.operands == 1:
            return self.operators[_kind(x)](x) if y is None else self.operators[_kind(x)](x, y)
        return self.operators[_kind(x)][_kind(y)](x, y)


def _kind(x: Tensor | float) -> int:
    """Which of Pointwise's strategies: 0 for a number, 1 of one axis, 2 a matrix, 3 a row, 4 a column, 5 and 6."""
    if not isinstance(x, Tensor):
        return 0
    if x.ndim == 2:
        return 3 if x.shape[0] == 1 else 4 if x.shape[1] == 1 else 2
    return x.ndim if x.ndim < 2 else x.ndim + 2


class Normalize(nn.Cell):
    """As `src.operators.Normalize`, by the fused operator; `parts` of the rows (N, H)."""

    def __init__(self, epsilon: float, parts: int):
        super().__init__()
        self.layer_norm = ops.LayerNorm(1, 1, epsilon).shard(((parts, 1), (1,), (1,)))
        self.cast = Pointwise(ops.Cast, parts, operands=1)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        normed, _, _ = self.layer_norm(self.cast(x, ms.float32), gamma, beta)
        return self.cast(normed, x.dtype)


class MaskedSoftmax(nn.Cell):
    """As `src.operators.MaskedSoftmax`, rows cut into `data` and heads into `tensor` parts."""

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
    """As `src.operators.CrossEntropy`, of logits (N, V) cut into `data` x `tensor` parts: of a row three numbers are
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


def annotate(network: PanguAlphaWithLoss, plan: Plan, sequence_parallel: bool = False) -> None:
    """Give every operator of a model and its loss its strategy, and every layer its stage.

    Args:
        network: Before its first call. On one device its results stay what they were.
        plan: Of the run.
        sequence_parallel: LayerNorms, dropouts and sums of hidden states are cut by tokens over the tensor ranks, too.
    """
    model = network.model
    annotate_model(model, plan, sequence_parallel)
    data = plan.data_ranks
    network.slice = ops.Slice().shard(((data, 1),))
    network.cross_entropy = CrossEntropy(data, plan.tensor)
    network.not_equal = ops.NotEqual().shard(((data, 1), ()))
    network.cast = Pointwise(ops.Cast, data, operands=1)
    network.mul = Pointwise(ops.Mul, data)
    network.sum = ops.ReduceSum().shard(((data,),))
    network.count = ops.ReduceSum().shard(((data,),))


def annotate_model(model: PanguAlphaModel, plan: Plan, sequence_parallel: bool = False) -> None:
    """The model's part of `annotate`."""
    data, tensor = plan.data_ranks, plan.tensor
    rows = data * tensor if sequence_parallel else data
    width = model.config.seq_length
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, EmbeddingTable):
            parts = tensor if cell.embedding_table.name == WORD_TABLE else 1
            cell.gather = ops.Gather().shard(((parts, 1), (data,)), ((data, 1),))
        elif isinstance(cell, LayerNorm):
            cell.normalize = Normalize(cell.normalize.epsilon, rows)
        elif isinstance(cell, Embedding):
            cell.add = ops.Add().shard(((data, 1), (data, 1)))
            cell.cast = Pointwise(ops.Cast, rows, operands=1)
            _dropout(cell.dropout, width, data)
        elif isinstance(cell, Attention):
            _attention(cell, width, data, tensor, rows)
        elif isinstance(cell, FeedForward):
            _feed_forward(cell, width, data, tensor, rows)
        elif isinstance(cell, Block):
            cell.add = ops.Add().shard(((rows, 1), (rows, 1)))
    backbone = model.backbone
    backbone.expand_dims = ops.ExpandDims().shard(((data, 1, 1),))
    backbone.cast = Pointwise(ops.Cast, data, operands=1)
    backbone.sub, backbone.mul = Pointwise(ops.Sub, data), Pointwise(ops.Mul, data)
    model.head.matmul = ops.MatMul(transpose_b=True).shard(((data, 1), (tensor, 1)))
    model.head.cast = Pointwise(ops.Cast, data, tensor, operands=1)
    if plan.pipeline > 1:
        _stages(model, plan)


def _attention(cell: Attention, width: int, data: int, tensor: int, rows: int) -> None:
    for linear in (cell.dense1, cell.dense2, cell.dense3):
        linear.product = ops.MatMul(transpose_b=True).shard(((data, 1), (tensor, 1)))
        linear.add_bias = ops.Add().shard(((data, tensor), (tensor,)))
    _row_parallel(cell.projection, data, tensor, rows)
    for swap in (cell.swap, cell.swap_scaled):
        swap.mul = ops.Mul().shard(((data, 1, tensor, 1), ()))
        swap.transpose = ops.Transpose().shard(((data, 1, tensor, 1),))
    cell.swap_back.transpose = ops.Transpose().shard(((data, tensor, 1, 1),))
    by_heads = (data, tensor, 1, 1)
    cell.scores = ops.BatchMatMul(transpose_b=True).shard((by_heads, by_heads))
    cell.weighted_sum = ops.BatchMatMul().shard((by_heads, by_heads))
    cell.softmax = MaskedSoftmax(data, tensor)
    cell.cast = Pointwise(ops.Cast, data, tensor, operands=1)
    _dropout(cell.attention_dropout, width, data, tensor)
    _dropout(cell.output_dropout, width, rows)


def _feed_forward(cell: FeedForward, width: int, data: int, tensor: int, rows: int) -> None:
    mapping, activation = cell.mapping, _activation(cell.activation, data, tensor)
    mapping.product = ops.MatMul().shard(((data, 1), (1, tensor)))
    mapping.add_bias = ops.Add().shard(((data, tensor), (tensor,)))
    mapping.product_to_transposed = WeightFirst(mapping.product)
    cell.activation = activation
    cell.biased_activation = BiasedColumns(mapping.add_bias, activation)
    _row_parallel(cell.projection, data, tensor, rows)
    _dropout(cell.dropout, width, rows)


def _row_parallel(linear: Linear, data: int, tensor: int, rows: int) -> None:
    """A product whose sum over the tensor ranks is its result; with more rows than data parts each gets its tokens."""
    strategy = ((data, tensor), (tensor, 1))
    linear.product = ops.MatMul().shard(strategy, ((rows, 1),)) if rows > data else ops.MatMul().shard(strategy)
    linear.product_of_transposed = linear.product
    linear.add_bias = ops.Add().shard(((rows, 1), (1,)))


def _activation(cell: nn.Cell, *parts: int) -> nn.Cell:
    if not isinstance(cell, FastGelu):
        return Pointwise(ops.GeLU, *parts, operands=1)
    cell.mul, cell.sigmoid = Pointwise(ops.Mul, *parts), Pointwise(ops.Sigmoid, *parts, operands=1)
    return cell


def _dropout(cell: Dropout, width: int, *parts: int) -> None:
    for name, make in (("add", ops.Add), ("mul", ops.Mul), ("xor", ops.BitwiseXor), ("bit_and", ops.BitwiseAnd),
                       ("shift", ops.RightShift), ("greater_equal", ops.GreaterEqual)):
        setattr(cell, name, Pointwise(make, *parts))
    cell.cast = Pointwise(ops.Cast, *parts, operands=1)
    cell.range = LongRange(width)


def _stages(model: PanguAlphaModel, plan: Plan) -> None:
    """The embedding first, the final LayerNorm, the query layer and the head last."""
    backbone, last = model.backbone, plan.pipeline - 1
    backbone.embedding.pipeline_stage = 0
    for layer, block in enumerate(model.layers):
        block.pipeline_stage = plan.stage_of_layer(layer)
    for cell in (backbone.layernorm, backbone.top_query_embedding, model.head):
        cell.pipeline_stage = last
    backbone.embedding.word_embedding.embedding_table.add_pipeline_stage(last)
