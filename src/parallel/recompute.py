"""Recomputation of activations in the backward pass."""

from mindspore import Tensor, nn, ops

from src.pangu_alpha import PanguAlphaModel


class KeptSum(nn.Cell):
    """A sum of hidden states that is not computed again: tensor-parallel ranks each keep their rows of it, and gather
    the others in the backward pass. MindSpore slices so what a recomputed cell returns, and nothing else."""

    def __init__(self, add: ops.Primitive):
        super().__init__()
        self.add = add
        self.recompute(recompute_slice_activation=True)

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return self.add(x, y)


def recompute_layers(model: PanguAlphaModel, norms: bool = False, slice_activation: bool = False) -> None:
    """Have the layers' backward passes compute their forward passes again.

    All but their two sums, whose results are kept, and what LayerNorms return: of whole layers MindSpore makes a graph
    with a cycle where there are stages or messages.

    Args:
        model: Of whose layers; with strategies, or attached to other ranks.
        norms: Compute again what LayerNorms return, too; with messages between cells that makes a cycle as well.
        slice_activation: Tensor-parallel ranks share out what is kept (semi_auto).
    """
    for layer in model.layers:
        for norm in (layer.layernorm1, layer.layernorm2):
            norm.recompute(output_recompute=norms)
        for part in (layer.attention, layer.output):
            part.recompute()
        if slice_activation:
            layer.add = KeptSum(layer.add)
