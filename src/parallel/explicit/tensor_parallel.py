"""Tensor parallel: heads, feed-forward units and vocabulary are spread over a group (Megatron-LM, arXiv 1909.08053).

Attention and feed-forward layers have a first matrix that is cut by columns and a second one that is cut by rows. The
sum over the ranks after the second one is the layer's output. src/parallel/plan/sharding.py says what a rank holds.
"""

from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.nn.moe import MixtureOfExperts
from src.nn.parameters import WORD_TABLE
from src.pangu_alpha import Embedding, EmbeddingTable, PanguAlphaModel, PanguAlphaWithLoss
from src.parallel.explicit.collectives import (
    AllGather,
    AllReduce,
    BeforeFirst,
    Chain,
    Copy,
    CopyTokens,
    GatherLast,
    JoinTokens,
    Reduce,
    ReduceTokens,
    SplitTokens,
)
from src.parallel.mesh import Group


def attach_to_model(
    model: PanguAlphaModel, group: Group, sequence_parallel: bool = False, vocab_parallel: bool = True
) -> None:
    """Add the collectives of tensor parallel to a model.

    Args:
        model: A model that holds this rank's slices, before its first call. Attach compiled kernels before, because
            their cells are wrapped here.
        group: The tensor-parallel ranks.
        sequence_parallel: Each rank has only its own tokens between the layers' products (arXiv 2205.05198). All texts
            must be as long as the position table, as in training.
        vocab_parallel: The word table is cut. If false, each rank embeds all words and computes all logits.
    """
    if group.size == 1:
        return

    def copy() -> nn.Cell:
        return CopyTokens(group, model.config.seq_length) if sequence_parallel else Copy(group)

    def reduce() -> nn.Cell:
        return ReduceTokens(group, model.config.seq_length) if sequence_parallel else Reduce(group)

    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, EmbeddingTable) and cell.embedding_table.name == WORD_TABLE and vocab_parallel:
            cell.gather = GatherFromPart(cell.gather, cell.embedding_table.shape[0], group)
        elif isinstance(cell, Embedding) and sequence_parallel:
            cell.cast = Chain(cell.cast, SplitTokens(group, model.config.seq_length))
    for layer in model.layers:
        attention, feed = layer.attention, layer.output
        layer.layernorm1.normalize = Chain(layer.layernorm1.normalize, copy())
        attention.core.num_heads //= group.size
        attention.core.dropout.part = group.index
        _sum_after(attention.projection, reduce)
        if sequence_parallel:
            attention.output_dropout.part = group.index
        if isinstance(feed, MixtureOfExperts):  # the router needs all tokens on each rank
            feed.ffn.mapping.product = BeforeFirst(Copy(group), feed.ffn.mapping.product)
            feed.ffn.projection.product = Chain(feed.ffn.projection.product, Reduce(group))
            if sequence_parallel:
                layer.layernorm2.normalize = Chain(
                    layer.layernorm2.normalize, JoinTokens(group, model.config.seq_length)
                )
                feed.dropout = Chain(feed.dropout, SplitTokens(group, model.config.seq_length))
        else:
            layer.layernorm2.normalize = Chain(layer.layernorm2.normalize, copy())
            _sum_after(feed.projection, reduce)
            if sequence_parallel:
                feed.dropout.part = group.index
        if layer is model.backbone.top_query_layer:
            query = attention.dense1  # its input comes from no LayerNorm, and no other matrix uses it
            query.product = BeforeFirst(Copy(group), query.product)
    if vocab_parallel:
        model.head.matmul = BeforeFirst(copy(), model.head.matmul)
    elif sequence_parallel:
        model.head.matmul = BeforeFirst(JoinTokens(group, model.config.seq_length), model.head.matmul)


def attach_to_loss(network: PanguAlphaWithLoss, group: Group) -> None:
    """Make the loss work on logits that are cut by vocabulary over the ranks."""
    if group.size > 1:
        network.row_losses.cross_entropy = CrossEntropyOfParts(network.model.config.vocab_size // group.size, group)


def attach_to_logits(model: PanguAlphaModel, group: Group) -> None:
    """Make the model gather the logits, so that every rank gets those of the whole vocabulary."""
    if group.size > 1:
        model.head.matmul = Chain(model.head.matmul, GatherLast(group))


def _sum_after(linear: nn.Cell, reduce: Callable[[], nn.Cell]) -> None:
    linear.product = Chain(linear.product, reduce())
    linear.product_of_transposed = Chain(linear.product_of_transposed, reduce())


class GatherFromPart(nn.Cell):
    """Looks ids up in a table that is cut by rows. The row of each id comes from the rank that holds it.

    Args:
        gather: Gathers rows from this rank's part of the table.
        rows: Rows of a part.
        group: The ranks that share the table.
    """

    def __init__(self, gather: nn.Cell, rows: int, group: Group):
        super().__init__()
        self.gather = gather
        self.begin, self.rows = rows * group.index, rows
        self.reduce = Reduce(group)
        self.cast = ops.Cast()
        self.mul = ops.Mul()

    def construct(self, table: Tensor, ids: Tensor, axis: int) -> Tensor:
        place, here = _local(ids, self.begin, self.rows)
        found = self.gather(table, place, axis)
        return self.reduce(self.mul(found, ops.expand_dims(self.cast(here, table.dtype), -1)))


def _local(ids: Tensor, begin: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return ids counted from `begin`, with 0 for those outside of this rank's `rows`, and a mask of those inside."""
    place = ids - begin
    here = ops.logical_and(place >= 0, place < rows)
    return ops.mul(place, ops.cast(here, ms.int32)), here


class LogSumExpOfParts(nn.Cell):
    """Cross entropy of logits (N, V / ranks) and labels (N,).

    Returns:
        For each row, the loss (N,) and the logarithm of the softmax's denominator (N,), both float32.
    """

    def __init__(self, rows: int, group: Group):
        super().__init__()
        self.begin, self.rows = rows * group.index, rows
        self.size = group.size
        self.gather = AllGather(group)
        self.sum = AllReduce(group)
        self.one_hot = ops.OneHot()
        self.on, self.off = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        count = labels.shape[0]
        largest = ops.reshape(self.gather(ops.ReduceMax()(logits, 1)), (self.size, count))
        largest = ops.reshape(ops.ReduceMax()(largest, 0), (count, 1))
        place, here = _local(labels, self.begin, self.rows)
        picked = ops.reshape(ops.gather_elements(logits, 1, ops.reshape(place, (count, 1))) - largest, (-1,))
        shares = ops.stack((ops.ReduceSum()(ops.exp(logits - largest), 1), picked * ops.cast(here, ms.float32)))
        total = self.sum(shares)
        log_denominator = ops.log(total[0])
        return log_denominator - total[1], log_denominator + ops.reshape(largest, (-1,))

    def bprop(
        self, logits: Tensor, labels: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Softmax minus one-hot, for this rank's part of the vocabulary. Labels have no gradient."""
        softmax = ops.exp(logits - ops.reshape(out[1], (-1, 1)))
        target = self.one_hot(labels - self.begin, self.rows, self.on, self.off)  # zeros if another rank has the label
        return (softmax - target) * ops.reshape(dout[0], (-1, 1)), ops.zeros_like(labels)


class CrossEntropyOfParts(nn.Cell):
    """Same as `src.nn.operators.CrossEntropy`, for logits that are cut by columns over the ranks."""

    def __init__(self, rows: int, group: Group):
        super().__init__()
        self.losses = LogSumExpOfParts(rows, group)

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.losses(logits, labels)[0]
