"""Test the official names of parameters, and the translation of older names."""

import pytest

from src.common.errors import InputError
from src.nn.parameters import (
    POSITION_TABLE,
    WORD_TABLE,
    block_number,
    by_official_name,
    is_parameter,
    layer_prefixes,
    official_name,
)
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from tests.support.programs import TINY


@pytest.mark.parametrize(
    ("older", "official"),
    [
        ("backbone.word_embedding.embedding_table", WORD_TABLE),
        ("backbone.position_embedding.embedding_table", POSITION_TABLE),
        ("adam_m.backbone.word_embedding.embedding_table", f"adam_m.{WORD_TABLE}"),
        ("backbone.blocks.0.attention.projection.mapping_weight", "backbone.blocks.0.attention.projection.weight"),
        ("backbone.blocks.0.output.mapping.mapping_bias", "backbone.blocks.0.output.mapping.bias"),
        ("network.backbone.layernorm.gamma", "backbone.layernorm.gamma"),
        ("pangu_alpha.backbone.word_embedding.embedding_table", WORD_TABLE),
        ("network.pangu_alpha.network.backbone.layernorm.beta", "backbone.layernorm.beta"),
        ("adam_v.network.backbone.layernorm.beta", "adam_v.backbone.layernorm.beta"),
        ("other_network.backbone.layernorm.beta", "other_network.backbone.layernorm.beta"),
    ],
)
def test_older_names_become_official_names(older, official):
    assert official_name(older) == official


def test_two_names_of_one_parameter_are_refused():
    older, newer = "network.backbone.layernorm.beta", "backbone.layernorm.beta"
    assert by_official_name([older, "epoch_num"], "a.ckpt") == {newer: older, "epoch_num": "epoch_num"}
    with pytest.raises(InputError, match=f"a.ckpt: '{older}' and '{newer}' are the same parameter"):
        by_official_name([older, newer], "a.ckpt")


@pytest.mark.parametrize("experts", [0, 2])
def test_the_models_own_names_are_official_and_stay_as_they_are(experts):
    config = PanguAlphaConfig(**{**TINY.__dict__, "num_experts": experts})
    names = [parameter.name for parameter in PanguAlphaModel(config).get_parameters()]
    for name in names:
        assert official_name(name) == name and is_parameter(name)
        assert official_name(f"adam_v.{name}") == f"adam_v.{name}" and not is_parameter(f"adam_v.{name}")


def test_every_layer_has_a_prefix_and_only_blocks_have_a_number():
    prefixes = layer_prefixes(TINY.num_layers)
    assert len(prefixes) == TINY.num_layers
    assert [block_number(f"{prefix}layernorm1.gamma") for prefix in prefixes] == [0, 1, None]
    assert block_number("backbone.blocks.12.output.mapping.bias") == 12
    assert block_number(WORD_TABLE) is None
    of_layers = {
        prefix
        for prefix in prefixes
        for parameter in PanguAlphaModel(TINY).get_parameters()
        if parameter.name.startswith(prefix)
    }
    assert of_layers == set(prefixes)
