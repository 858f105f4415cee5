"""Recomputation of activations in the backward pass (parallel.recompute)."""

from mindspore import Tensor, nn, ops

from src.pangu_alpha import PanguAlphaModel


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


def recompute_layers(model: PanguAlphaModel, norms: bool = False, slice_activation: bool = False) -> None:
    """Make the backward pass of each layer compute its forward pass again.

    The two sums of a layer and, by default, the outputs of its LayerNorms are kept. If whole layers were recomputed,
    MindSpore would make a cyclic graph where there are stages or collectives.

    Args:
        model: A model that has its shard strategies or collectives already.
        norms: Recompute the outputs of LayerNorms too. With collectives between cells this makes a cyclic graph.
        slice_activation: Tensor-parallel ranks share out what is kept (semi_auto).
    """
    for layer in model.layers:
        for norm in (layer.layernorm1, layer.layernorm2):
            norm.recompute(output_recompute=norms)
        for part in (layer.attention, layer.output):
            part.recompute()
        if slice_activation:
            layer.add = KeptSum(layer.add)
