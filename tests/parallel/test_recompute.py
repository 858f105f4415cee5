"""Which cells are computed again. tests/training/test_trainer.py has their losses, the dry run their memory."""

import pytest

from src.nn.attention import CoreAttention
from src.nn.operators import Product
from src.pangu_alpha import Attention, FeedForward, LayerNorm
from src.parallel.attention import fuse_attention
from src.parallel.recompute import RecomputedActivation, recompute_layers
from tests.support.programs import random_model


def recomputed(model):
    """The classes of the outermost cells of a model that are computed again."""
    marked = [cell for _, cell in model.cells_and_names() if "recompute" in (cell.get_scope() or "")]
    within = {id(inner) for cell in marked for inner in cell.cells()}
    return {type(cell) for cell in marked if id(cell) not in within}


@pytest.mark.parametrize(
    "kind, wanted",
    [
        ("none", set()),
        ("selective", {LayerNorm, CoreAttention, RecomputedActivation}),
        ("full", {LayerNorm, Attention, FeedForward}),
    ],
)
def test_kinds(kind, wanted):
    model, _ = random_model()
    recompute_layers(model, kind, norms=True)
    assert recomputed(model) == wanted


@pytest.mark.parametrize("kind, kept", [("none", True), ("selective", False), ("full", False)])
def test_products_keep_their_inputs_only_without_recompute(kind, kept):
    model, _ = random_model()
    recompute_layers(model, kind)
    for layer in model.layers:
        products = layer.attention.dense1.product, layer.output.projection.product_of_transposed
        assert [isinstance(product, Product) for product in products] == [kept, kept]


def test_selective_leaves_fused_attention():
    model, _ = random_model()
    fuse_attention(model, by_ends=True)
    recompute_layers(model, "selective", norms=True)
    assert recomputed(model) == {LayerNorm, RecomputedActivation}
