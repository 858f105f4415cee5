"""Recomputation of activations in the backward pass."""

from src.pangu_alpha import PanguAlphaModel


def recompute_layers(model: PanguAlphaModel) -> None:
    """Have the layers' backward passes compute their forward passes again.

    All but their two sums, whose results are kept: of whole layers MindSpore makes a graph with a cycle where there are
    stages or messages.
    """
    for layer in model.layers:
        for part in (layer.layernorm1, layer.attention, layer.layernorm2, layer.output):
            part.recompute()
