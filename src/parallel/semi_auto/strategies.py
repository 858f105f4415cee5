"""Shard strategies of every operator, for MindSpore's semi-automatic parallel. They are set from outside the model.

The graph has the whole model and the whole batch. From the strategies the compiler slices parameters and tensors, and
inserts the collectives. The plan is the same as for the explicit engine: the same mesh, numbering and slices. Cells
that define their own gradients for a CPU are replaced by plain operators: the compiler does not look into such cells.
"""

from collections.abc import Iterable, Iterator

import mindspore as ms
from mindspore import nn, ops

from src.nn.attention import AttentionBias, CoreAttention
from src.nn.moe import MixtureOfExperts, Router
from src.nn.parameters import WORD_TABLE
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
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.operators import (
    BiasedColumns,
    CrossEntropy,
    MaskedSoftmax,
    Normalize,
    Pointwise,
    WeightFirst,
    activation,
    shard_dropout,
)


def annotate(network: PanguAlphaWithLoss, plan: Plan, sequence_parallel: bool = False) -> None:
    """Give every operator of a model and its loss a shard strategy, and every layer its stage.

    Args:
        network: The loss of a whole model, before its first call. Its results on one device do not change.
        plan: How the run is spread.
        sequence_parallel: Also cut LayerNorms, dropouts and sums of hidden states by tokens over the tensor ranks.
    """
    model = network.model
    annotate_model(model, plan, sequence_parallel)
    data = plan.data_ranks
    network.slice = ops.Slice().shard(((data, 1),))
    network.row_losses.cross_entropy = CrossEntropy(data, plan.vocab_parts)
    network.not_equal = ops.NotEqual().shard(((data, 1), ()))
    network.cast = Pointwise(ops.Cast, data, operands=1)
    network.mul = Pointwise(ops.Mul, data)
    network.sum = ops.ReduceSum().shard(((data,),))
    network.count = ops.ReduceSum().shard(((data,),))


def annotate_model(model: PanguAlphaModel, plan: Plan, sequence_parallel: bool = False) -> None:
    """Do what `annotate` does, for a model without its loss."""
    data, tensor = plan.data_ranks, plan.tensor
    rows = data * tensor if sequence_parallel else data
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, EmbeddingTable):
            parts = plan.vocab_parts if cell.embedding_table.name == WORD_TABLE else 1
            cell.gather = ops.Gather().shard(((parts, 1), (data,)), ((data, 1),))
        elif isinstance(cell, LayerNorm):
            cell.normalize = Normalize(cell.normalize.epsilon, rows)
        elif isinstance(cell, Embedding):
            cell.add = ops.Add().shard(((data, 1), (data, 1)))
            cell.cast = Pointwise(ops.Cast, rows, operands=1)
            shard_dropout(cell.dropout, data, data, 1)
        elif isinstance(cell, Attention):
            _attention(cell, data, tensor, rows)
        elif isinstance(cell, MixtureOfExperts):
            _experts(cell, plan, rows)
        elif isinstance(cell, FeedForward):
            _feed_forward(cell, data, tensor, rows)
        elif isinstance(cell, Block):
            cell.add = ops.Add().shard(((rows, 1), (rows, 1)))
    backbone = model.backbone
    backbone.cast = Pointwise(ops.Cast, data, operands=1)
    _attention_bias(backbone.attention_bias, data)
    model.head.matmul = ops.MatMul(transpose_b=True).shard(((data, 1), (plan.vocab_parts, 1)))
    model.head.cast = Pointwise(ops.Cast, data, plan.vocab_parts, operands=1)
    if plan.pipeline > 1:
        _stages(model, plan)


def _attention(cell: Attention, data: int, tensor: int, rows: int) -> None:
    for linear in (cell.dense1, cell.dense2, cell.dense3):
        linear.product = ops.MatMul(transpose_b=True).shard(((data, 1), (tensor, 1)))
        linear.add_bias = ops.Add().shard(((data, tensor), (tensor,)))
    _row_parallel(cell.projection, data, tensor, rows)
    _core_attention(cell.core, data, tensor)
    shard_dropout(cell.output_dropout, data, rows, 1)


def _attention_bias(cell: AttentionBias, data: int) -> None:
    cell.expand_dims = ops.ExpandDims().shard(((data, 1, 1),))
    cell.cast = Pointwise(ops.Cast, data, operands=1)
    cell.sub, cell.mul = Pointwise(ops.Sub, data), Pointwise(ops.Mul, data)


def _core_attention(cell: CoreAttention, data: int, tensor: int) -> None:
    for swap in (cell.swap, cell.swap_scaled):
        swap.mul = ops.Mul().shard(((data, 1, tensor, 1), ()))
        swap.transpose = ops.Transpose().shard(((data, 1, tensor, 1),))
    cell.swap_back.transpose = ops.Transpose().shard(((data, tensor, 1, 1),))
    by_heads = (data, tensor, 1, 1)
    cell.scores = ops.BatchMatMul(transpose_b=True).shard((by_heads, by_heads))
    cell.weighted_sum = ops.BatchMatMul().shard((by_heads, by_heads))
    cell.softmax = MaskedSoftmax(data, tensor)
    cell.cast = Pointwise(ops.Cast, data, tensor, operands=1)
    shard_dropout(cell.dropout, data, data, tensor, 1, 1)


def _feed_forward(cell: FeedForward, data: int, tensor: int, rows: int) -> None:
    mapping = cell.mapping
    mapping.product = ops.MatMul().shard(((data, 1), (1, tensor)))
    mapping.add_bias = ops.Add().shard(((data, tensor), (tensor,)))
    mapping.product_to_transposed = WeightFirst(mapping.product)
    cell.activation = activation(cell.activation, (data, tensor))
    cell.biased_activation = BiasedColumns(mapping.add_bias, cell.activation)
    _row_parallel(cell.projection, data, tensor, rows)
    shard_dropout(cell.dropout, data, rows, 1)


def _experts(cell: MixtureOfExperts, plan: Plan, rows: int) -> None:
    """Cut the router by data, and the experts and their tokens by expert and by the remaining data parallel.

    The compiler inserts an AlltoAll where the cut changes.
    """
    data = plan.data_ranks
    _router(cell.router, data)
    batch = (data, 1, 1)
    cell.dispatch = ops.BatchMatMul(transpose_a=True).shard((batch, batch))
    cell.combine = ops.BatchMatMul().shard((batch, batch))
    layout = ms.Layout((plan.data, plan.expert, plan.tensor), ("data", "expert", "tensor"))
    cell.transpose = ops.Transpose().shard((layout("data", "expert", "None", "None"),))
    cell.transpose_back = ops.Transpose().shard((layout("expert", "data", "None", "None"),))
    cell.cast = Pointwise(ops.Cast, data, operands=1)
    cell.ffn.activation = activation(cell.ffn.activation, layout("expert", "data", "tensor"))
    # This bias is whole on tensor-parallel ranks. The compiler would share it out over them too.
    cell.ffn.projection.bias.parallel_optimizer = False
    for linear, rows_in, rows_out in ((cell.ffn.mapping, "None", "tensor"), (cell.ffn.projection, "tensor", "None")):
        linear.product = ops.BatchMatMul().shard(
            (layout("expert", "data", rows_in), layout("expert", rows_in, rows_out))
        )
        linear.add_bias = ops.Add().shard((layout("expert", "data", rows_out), layout("expert", "None", rows_out)))
        linear.expand_dims = ops.ExpandDims().shard((layout("expert", rows_out),))
    shard_dropout(cell.dropout, data, rows, 1)


def _router(cell: Router, data: int) -> None:
    cell.dense.matmul = ops.MatMul().shard(((data, 1), (1, 1)))
    cell.dense.cast = cell.cast = Pointwise(ops.Cast, data, operands=1)
    cell.softmax = ops.Softmax(axis=-1).shard(((data, 1, 1),))
    cell.argmax = ops.Argmax(axis=-1, output_type=ms.int32).shard(((data, 1, 1),))
    cell.one_hot = ops.OneHot().shard(((data, 1, 1), (), ()))
    cell.count_before = ops.CumSum(exclusive=True).shard(((data, 1, 1),))
    cell.range = ops.Range().shard(((1,),))
    cell.equal = ops.Equal().shard(((data, 1, 1), (1,)))
    cell.expand_dims = Pointwise(ops.ExpandDims, data, operands=1)
    cell.sum, cell.mean = Pointwise(ops.ReduceSum, data, operands=1), Pointwise(ops.ReduceMean, data, operands=1)
    for name, make in (("mul", ops.Mul), ("div", ops.Div), ("add", ops.Add), ("sub", ops.Sub)):
        setattr(cell, name, Pointwise(make, data))


def _row_parallel(linear: Linear, data: int, tensor: int, rows: int) -> None:
    """Cut a product by the rows of its weight, so that its result is a sum over the tensor ranks.

    With sequence parallel (`rows` > `data`) each rank gets its tokens of the sum.
    """
    strategy = ((data, tensor), (tensor, 1))
    linear.product = ops.MatMul().shard(strategy, ((rows, 1),)) if rows > data else ops.MatMul().shard(strategy)
    linear.product_of_transposed = linear.product
    linear.add_bias = ops.Add().shard(((rows, 1), (1,)))


def _stages(model: PanguAlphaModel, plan: Plan) -> None:
    """Put the embedding into the first chunk, each layer into its own, and what follows the blocks into the last."""
    backbone, last = model.backbone, plan.num_chunks - 1
    chunks = [(backbone.embedding, 0)]
    chunks += [(layer, plan.chunk_of_layer(number)) for number, layer in enumerate(model.layers)]
    chunks += [(cell, last) for cell in (backbone.layernorm, backbone.top_query_embedding, model.head)]
    for cell, chunk in chunks:
        cell.pipeline_stage = plan.stage_of_chunk(chunk)
        if plan.virtual_stages > 1:
            cell.pipeline_segment = chunk // plan.pipeline
    if plan.last_stage:
        backbone.embedding.word_embedding.embedding_table.add_pipeline_stage(plan.last_stage)


def forget_strategies(cell: nn.Cell) -> None:
    """Remove all strategies, so that the compiler searches for its own. The plain operators stay."""
    for _, inner in cell.cells_and_names():
        for operator in _operators([*vars(inner).values(), *inner._primitives.values()]):
            for name in ("in_strategy", "out_strategy"):
                if name in operator.attrs:
                    operator.del_prim_attr(name)


def _operators(values: Iterable[object]) -> Iterator[ops.Primitive]:
    for value in values:
        if isinstance(value, ops.Primitive):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _operators(value)
