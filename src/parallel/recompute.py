"""Recomputation of activations in the backward pass (parallel.recompute)."""

from collections.abc import Callable

from mindspore import Tensor, nn, ops

from src.common.settings import Recompute
from src.nn.attention import CoreAttention
from src.nn.moe import MixtureOfExperts
from src.nn.operators import Product
from src.pangu_alpha import Block, FeedForward, PanguAlphaModel


class KeptSum(nn.Cell):
    """Sum of hidden states that is kept for the backward pass, cut by rows over the tensor-parallel ranks.

    The backward pass gathers the rows. MindSpore can slice only what a recomputed cell returns, so the sum is a cell.
    """

    def __init__(self, add: ops.Primitive):
        super().__init__()
        self.add = add
        self.recompute(recompute_slice_activation=True)

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return self.add(x, y)


class RecomputedActivation(nn.Cell):
    """An activation whose result is computed again in the backward pass, from its input, which is kept.

    With `*inputs` in the place of x MindSpore would keep the result of an operator.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.activation = activation
        self.recompute(output_recompute=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.activation(x)


def recompute_layers(
    model: PanguAlphaModel, kind: Recompute, norms: bool = False, slice_activation: bool = False
) -> None:
    """Make the backward pass of each layer compute some of its forward pass again.

    `full` keeps the two sums of a layer and, by default, the outputs of its LayerNorms. If whole layers were
    recomputed, MindSpore would make a cyclic graph where there are stages or collectives. `selective` keeps what the
    products of a layer return, and computes again what is cheap for its size: the outputs of its LayerNorms and of its
    activation, and attention, if it is the plain one.

    Args:
        model: A model that has its shard strategies or collectives already.
        kind: none, selective or full (parallel.recompute).
        norms: Recompute the outputs of LayerNorms too. With collectives between cells this makes a cyclic graph.
        slice_activation: Tensor-parallel ranks share out what is kept (semi_auto).
    """
    if kind == "none":
        return
    for layer in model.layers:
        _use_plain_products(layer)
        for norm in (layer.layernorm1, layer.layernorm2):
            norm.recompute(output_recompute=norms)
        if kind == "full":
            for part in (layer.attention, layer.output):
                part.recompute()
            if slice_activation:
                layer.add = KeptSum(layer.add)
        else:
            if type(layer.attention.core) is CoreAttention:
                layer.attention.core.recompute()
            _recompute_activation(layer.output)


def _use_plain_products(layer: Block) -> None:
    """Replace products by the operator in them. A cell with its own bprop keeps its inputs; the gradients are equal."""
    for _, cell in list(layer.cells_and_names()):
        for name in list(cell.name_cells()):
            part = getattr(cell, name)  # name_cells() still has what an operator with a strategy has replaced
            if type(part) is Product:
                setattr(cell, name, part.matmul)


def _recompute_activation(output: FeedForward | MixtureOfExperts) -> None:
    # MindSpore can't compile this with the sum of the bias inside, in a graph that is called for each micro-batch. Only
    # a compiled kernel has both in one.
    holder = output.biased_activation if isinstance(output, FeedForward) else output.ffn
    if hasattr(holder, "activation"):
        holder.activation = RecomputedActivation(holder.activation)
    else:
        holder.recompute(output_recompute=True)
