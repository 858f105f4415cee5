"""Slices of parameters, compared with numpy's slicing, with the real model's parameters, and with each other."""

import random
from dataclasses import replace

import numpy as np
import pytest

from src.nn.parameters import WORD_TABLE
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import (
    Box,
    box,
    is_expert,
    optimizer_box,
    parameter_shapes,
    replicas,
    stages,
    tensor_axis,
)
from tests.support.programs import TINY


def draw_case(seed):
    """Return a random model, and a plan that fits it."""
    draw = random.Random(seed)
    tensor, expert, pipeline = draw.choice([1, 2, 4]), draw.choice([1, 2]), draw.randint(1, 4)
    model = PanguAlphaConfig(
        vocab_size=4 * draw.randint(3, 9),
        hidden_size=8,
        num_layers=draw.randint(pipeline + 1, 6),
        num_heads=4,
        ffn_hidden_size=4 * draw.randint(1, 5),
        seq_length=draw.randint(2, 6),
        eod_token=1,
        num_experts=expert * draw.randint(expert - 1, 2),
        expert_interval=draw.randint(1, 2),
    )
    return model, Plan(
        pipeline, draw.randint(1, 3), expert, tensor, draw.random() < 0.7, model.num_layers, draw.random() < 0.7
    )


CASES = [draw_case(seed) for seed in range(40)]


def test_the_drawn_cases_cover_all_kinds():
    assert {plan.tensor for _, plan in CASES} == {1, 2, 4} and {plan.expert for _, plan in CASES} == {1, 2}
    assert {plan.pipeline for _, plan in CASES} == {1, 2, 3, 4} and {plan.optimizer_shard for _, plan in CASES} == {
        True,
        False,
    }
    assert {(plan.tensor, plan.vocab_parallel) for _, plan in CASES} >= {(2, True), (2, False), (4, True), (4, False)}
    assert any(model.num_experts for model, _ in CASES)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(ffn_hidden_size=48, num_layers=2),
        dict(num_experts=4),
        dict(num_experts=2, expert_interval=1, expert_top_k=2),
    ],
)
def test_parameter_shapes_are_those_of_the_model_in_its_order(changes):
    config = replace(TINY, **changes)
    of_model = [(parameter.name, tuple(parameter.shape)) for parameter in PanguAlphaModel(config).get_parameters()]
    assert list(parameter_shapes(config).items()) == of_model
    assert sum(np.prod(shape) for _, shape in of_model) == config.num_parameters


@pytest.mark.parametrize(
    "name, axis",
    [
        (WORD_TABLE, 0),
        ("backbone.embedding.position_embedding.embedding_table", None),
        ("backbone.top_query_embedding.embedding_table", None),
        ("backbone.layernorm.gamma", None),
        ("backbone.blocks.11.layernorm2.beta", None),
        ("backbone.blocks.11.attention.dense1.weight", 0),  # stored (out, in)
        ("backbone.blocks.11.attention.dense3.bias", 0),
        ("backbone.top_query_layer.attention.projection.weight", 0),  # stored (in, out), like all below
        ("backbone.top_query_layer.attention.projection.bias", None),
        ("backbone.blocks.0.output.mapping.weight", 1),
        ("backbone.blocks.0.output.mapping.bias", 0),
        ("backbone.blocks.0.output.projection.weight", 0),
        ("backbone.blocks.0.output.projection.bias", None),
        ("backbone.blocks.1.output.router.dense.weight", None),
        ("backbone.blocks.1.output.ffn.mapping.weight", 2),
        ("backbone.blocks.1.output.ffn.mapping.bias", 1),
        ("backbone.blocks.1.output.ffn.projection.weight", 1),
        ("backbone.blocks.1.output.ffn.projection.bias", None),
    ],
)
def test_what_tensor_parallel_slices(name, axis):
    """Matrices into heads and hidden units are column parallel, those out of them row parallel (Megatron-LM, sec.
    3)."""
    assert tensor_axis(name) == axis


def test_a_whole_vocabulary_is_on_each_tensor_rank():
    assert tensor_axis(WORD_TABLE, vocab_parallel=False) is None
    plan = Plan(data=2, tensor=2, optimizer_shard=True, vocab_parallel=False)
    assert box(WORD_TABLE, (7, 4), plan, plan.coordinates(3)) == Box((0, 0), (7, 4))
    assert optimizer_box(WORD_TABLE, (8, 4), plan, plan.coordinates(3)) == Box((4, 0), (8, 4)), "rows of replica 1"
    name = "backbone.blocks.0.output.mapping.bias"
    assert tensor_axis(name, vocab_parallel=False) == tensor_axis(name) == 0


def test_stages_by_hand():
    plan = Plan(pipeline=3, num_layers=7)  # stages of layers 0-2, 3-4 and 5-6; layer 6 is the query layer
    expected = {
        WORD_TABLE: (0, 2),
        "backbone.embedding.position_embedding.embedding_table": (0,),
        "backbone.blocks.2.layernorm1.gamma": (0,),
        "backbone.blocks.3.layernorm1.gamma": (1,),
        "backbone.blocks.5.output.mapping.bias": (2,),
        "backbone.layernorm.gamma": (2,),
        "backbone.top_query_embedding.embedding_table": (2,),
        "backbone.top_query_layer.attention.dense1.bias": (2,),
    }
    assert {name: stages(name, plan) for name in expected} == expected
    assert stages(WORD_TABLE, Plan(num_layers=7)) == (0,)


def test_stages_of_chunks_by_hand():
    """Layers 0-1, 2-3, 4-5 and 6 are chunks. Layer 6 is the query layer; over the stages and back, it is in stage 0."""
    expected = {
        WORD_TABLE: ((0, 1), (0,)),
        "backbone.embedding.position_embedding.embedding_table": ((0,), (0,)),
        "backbone.blocks.1.layernorm1.gamma": ((0,), (0,)),
        "backbone.blocks.3.layernorm1.gamma": ((1,), (1,)),
        "backbone.blocks.5.output.mapping.bias": ((0,), (1,)),
        "backbone.layernorm.gamma": ((1,), (0,)),
        "backbone.top_query_embedding.embedding_table": ((1,), (0,)),
        "backbone.top_query_layer.attention.dense1.bias": ((1,), (0,)),
    }
    plans = [Plan(pipeline=2, virtual_stages=2, num_layers=7, turns_back=back) for back in (False, True)]
    assert {name: tuple(stages(name, plan) for plan in plans) for name in expected} == expected


def test_a_rank_s_slices_by_hand():
    plan = Plan(data=2, expert=2, tensor=2, optimizer_shard=True, num_layers=4)
    at = plan.coordinates(7)  # data 1, expert 1, tensor 1: replica 3 of 4 of the parameters outside experts
    name = "backbone.blocks.0.output.mapping.weight"
    assert box(name, (8, 32), plan, at) == Box((0, 16), (8, 32))
    assert optimizer_box(name, (8, 32), plan, at) == Box((6, 16), (8, 32))
    name = "backbone.blocks.1.output.ffn.mapping.weight"
    assert box(name, (8, 8, 32), plan, at) == Box((4, 0, 16), (8, 8, 32))
    assert optimizer_box(name, (8, 8, 32), plan, at) == Box((6, 0, 16), (8, 8, 32))
    name = "backbone.layernorm.gamma"
    assert optimizer_box(name, (6,), plan, at) == Box((0,), (6,)), "6 rows don't divide by 4: all update all"
    name = "backbone.blocks.1.output.ffn.projection.weight"
    assert optimizer_box(name, (2, 32, 8), plan, at) == Box((1, 24, 0), (2, 32, 8)), "of one expert, half its rows"


def holders(name, plan):
    """Return the coordinates of the ranks that hold a part of a parameter, in one list for each stage."""
    by_stage = {stage: [] for stage in stages(name, plan)}
    for rank in range(plan.world_size):
        at = plan.coordinates(rank)
        if at.pipeline in by_stage:
            by_stage[at.pipeline].append(at)
    return by_stage.values()


@pytest.mark.parametrize("model, plan", CASES)
def test_boxes_cover_each_parameter_once_a_replica(model, plan):
    for name, shape in parameter_shapes(model).items():
        for ranks in holders(name, plan):
            counts = np.zeros(shape, int)
            replicas_of_part = {}
            for at in ranks:
                part = box(name, shape, plan, at)
                counts[part.index] += 1
                which, many = replicas(name, plan, at)
                replicas_of_part.setdefault((part, at.tensor), []).append(which)
            is_cut = tensor_axis(name, plan.vocab_parallel) is not None
            whole_on_tensor_ranks = 1 if is_cut else plan.tensor
            assert (counts == many * whole_on_tensor_ranks).all(), name
            assert all(sorted(seen) == list(range(many)) for seen in replicas_of_part.values()), name
            parts = len({part for part, _ in replicas_of_part})
            assert parts == (plan.tensor if is_cut else 1) * (plan.expert if is_expert(name) else 1)


@pytest.mark.parametrize("model, plan", CASES)
def test_replicas_share_out_what_they_update(model, plan):
    for name, shape in parameter_shapes(model).items():
        for ranks in holders(name, plan):
            counts = {}
            for at in ranks:
                held, updated = box(name, shape, plan, at), optimizer_box(name, shape, plan, at)
                assert updated.overlap(held) == updated
                counts.setdefault((held, at.tensor), np.zeros(shape, int))[updated.index] += 1
            many = replicas(name, plan, at)[1]
            rows = next((size for size in held.shape if size > 1), 1)
            shared_out = plan.optimizer_shard and rows % many == 0
            for (held, _), count in counts.items():
                assert (count[held.index] == (1 if shared_out else many)).all(), name
                assert count.sum() == count[held.index].sum(), name


@pytest.mark.parametrize("model, plan", CASES)
def test_replicas_parts_follow_each_other_in_memory(model, plan):
    """ReduceScatter and AllGather rely on this: they join the parts in the order of the ranks."""
    for name, shape in parameter_shapes(model).items():
        numbers = np.arange(np.prod(shape)).reshape(shape)
        parts = {}
        for ranks in holders(name, plan):
            for at in ranks:
                held, updated = box(name, shape, plan, at), optimizer_box(name, shape, plan, at)
                if updated != held:
                    which = replicas(name, plan, at)[0]
                    parts.setdefault((at.pipeline, at.tensor, held), {})[which] = numbers[updated.index].ravel()
        for (_, _, held), of_replicas in parts.items():
            joined = np.concatenate([of_replicas[which] for which in sorted(of_replicas)])
            assert np.array_equal(joined, numbers[held.index].ravel()), name


@pytest.mark.parametrize("model, plan", CASES)
def test_all_ranks_together_hold_each_number_of_the_model(model, plan):
    different = {
        (name, box(name, shape, plan, plan.coordinates(rank)))
        for name, shape in parameter_shapes(model).items()
        for rank in range(plan.world_size)
        if plan.coordinates(rank).pipeline in stages(name, plan)
    }
    assert sum(part.size for _, part in different) == model.num_parameters


@pytest.mark.parametrize("model, plan", CASES)
def test_replicas_are_counted_in_the_order_of_their_group(model, plan):
    for rank in range(plan.world_size):
        at = plan.coordinates(rank)
        for name in parameter_shapes(model):
            group = plan.group(rank, *(("data",) if is_expert(name) else ("data", "expert")))
            assert replicas(name, plan, at) == (group.index(rank), len(group))


def draw_box(draw, shape):
    begin = [draw.randint(0, size - 1) for size in shape]
    return Box(tuple(begin), tuple(draw.randint(b + 1, size) for b, size in zip(begin, shape, strict=True)))


@pytest.mark.parametrize("seed", range(50))
def test_boxes_slice_as_numpy_does(seed):
    draw = random.Random(seed)
    shape = tuple(draw.randint(1, 7) for _ in range(draw.randint(1, 3)))
    array = np.arange(np.prod(shape)).reshape(shape)
    one, other = draw_box(draw, shape), draw_box(draw, shape)
    assert array[one.index].shape == one.shape and array[one.index].size == one.size
    both = one.overlap(other)
    expected = np.intersect1d(array[one.index], array[other.index])
    if both is None:
        assert expected.size == 0
    else:
        assert np.array_equal(np.sort(array[both.index], None), expected)
        assert np.array_equal(array[one.index][both.within(one).index], array[both.index])
    assert both == other.overlap(one)
    assert np.array_equal(array[Box.whole(shape).index], array)


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_a_box_are_numpy_s_split(seed):
    draw = random.Random(seed)
    parts, axis = draw.randint(1, 4), draw.randint(0, 1)
    inner = [draw.randint(1, 5), draw.randint(1, 5)]
    inner[axis] = parts * draw.randint(1, 3)
    array = np.arange(400).reshape(20, 20)
    outer = Box((3, 2), (3 + inner[0], 2 + inner[1]))
    for which, expected in enumerate(np.split(array[outer.index], parts, axis)):
        assert np.array_equal(array[outer.part(axis, which, parts).index], expected)
