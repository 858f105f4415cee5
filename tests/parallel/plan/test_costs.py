"""What a rank holds under a plan, compared with numbers worked out by hand and with the real model."""

import random
from dataclasses import replace

import mindspore as ms
import pytest

from src.pangu_alpha import PanguAlphaModel
from src.parallel.explicit.build import build_chunks, build_stepper
from src.parallel.mesh import Mesh
from src.parallel.plan.costs import communication, rank_memory
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import box, optimizer_box, parameter_shapes, stages
from src.parallel.plan.sizes import is_float32
from tests.support.plans import config_of, held_by
from tests.support.programs import TINY
from tests.support.reality import bytes_by_kind, parameters


def test_one_rank_holds_everything_and_sends_nothing():
    assert held_by(config_of()) == (40736, 4 * 40736, 4 * 40736, 8 * 40736, 0)
    assert communication(config_of(), 0) == []


def test_tensor_parallel_halves_what_is_sliced():
    """A layer has 6,448 numbers on each rank: 1,584 in dense1-3, 544 and 2,080 in the row-parallel matrices with their
    whole biases, 2,112 in the mapping, and 128 in LayerNorms. The word table has 768. Positions, queries and the final
    LayerNorm are whole."""
    assert held_by(config_of(dict(tensor=2)))[0] == 3 * 6448 + 768 + 512 + 512 + 64


def test_stages_hold_their_layers_and_both_the_word_table():
    config = config_of(dict(pipeline=2, micro_batch_num=2))
    assert held_by(config, 0) == (27456, 4 * 27456, 4 * 27456, 8 * 27456, 0)  # 2 layers, word table, positions
    assert held_by(config, 1)[0] == 12704 + 64 + 512 + 1536


def test_optimizer_shard_halves_the_moments_alone():
    config = config_of(dict(data=2, optimizer_shard=True))
    assert held_by(config) == held_by(config, 1) == (40736, 4 * 40736, 4 * 40736, 4 * 40736, 2 * 40736)
    odd = config_of(dict(data=3, optimizer_shard=True))  # only the 48 rows of the word table divide by 3
    assert held_by(odd)[3:] == (8 * (40736 - 1536 + 512), 4 * 512)


def test_half_precision_weights():
    """LayerNorms (448 numbers) and tables (2,560) stay float32. So do the sums over micro-batches and the moments."""
    weights = 2 * (40736 - 3008) + 4 * 3008
    half = dict(param_init_dtype="float16")
    assert held_by(config_of(model=half)) == (40736, weights, weights, 8 * 40736, 0)
    assert held_by(config_of(model=half, accumulation_steps=2))[2] == 4 * 40736
    assert held_by(config_of(dict(data=2, optimizer_shard=True), half))[4] == weights // 2


@pytest.mark.parametrize("changes", [{}, dict(num_experts=4)])
def test_which_parameters_stay_float32(changes):
    model = PanguAlphaModel(replace(TINY, param_init_dtype="float16", **changes))
    assert {p.name: is_float32(p.name) for p in model.get_parameters()} == {
        p.name: p.dtype == ms.float32 for p in model.get_parameters()
    }


def test_offloaded_moments_are_not_on_the_device():
    on_host, on_device = (rank_memory(config_of(dict(optimizer_offload=offload)), 0) for offload in (True, False))
    assert on_host.moments == on_device.moments == 8 * 40736
    assert on_device.total - on_host.total == on_device.moments


EXECUTED = {
    "dp2 with ZeRO": (dict(data=2, optimizer_shard=True), {}),
    "tp2": (dict(tensor=2), {}),
    "tp2 x pp2": (dict(tensor=2, pipeline=2, micro_batch_num=2), {}),
    "tp2 x pp2 in virtual stages": (
        dict(tensor=2, pipeline=2, virtual_stages=2, micro_batch_num=2),
        dict(num_layers=5),
    ),
    "tp2, the word table whole": (dict(tensor=2, vocab_parallel=False), dict(vocab_size=47)),
    "experts over ep2 x tp2": (dict(expert=2, tensor=2), dict(num_experts=4)),
    "all at once, half precision": (
        dict(data=2, expert=2, tensor=2, pipeline=2, micro_batch_num=2, optimizer_shard=True),
        dict(num_experts=4, vocab_size=52, param_init_dtype="float16"),
    ),
}


@pytest.mark.parametrize("parallel, model", EXECUTED.values(), ids=EXECUTED)
def test_each_rank_s_parameters_take_the_planned_bytes(monkeypatch, parallel, model):
    """The ranks are built one after another in one process, where groups have names but do not communicate. All
    Parameter objects of a rank count. tests/distributed/test_plan_reality.py uses real ranks."""
    monkeypatch.setattr("src.parallel.mesh.create_group", lambda name, ranks: None)
    config = config_of(parallel, model)
    plan = Plan.of(config.parallel, config.model)
    for rank in range(plan.world_size):
        others = parameters()
        mesh = Mesh(plan, rank)
        models = build_chunks(config.model, mesh, seed=0)
        stepper, _ = build_stepper(config, models, mesh)
        before = set(map(id, others))
        held = bytes_by_kind(parameter for parameter in parameters() if id(parameter) not in before)
        planned = rank_memory(config, rank)
        assert held == {
            "weights": planned.weights,
            "moments": planned.moments,
            "slices": planned.copies,
            "gradients": planned.sums,
        }
        assert planned.parameters == sum(parameter.size for model in models for parameter in model.get_parameters())
        del stepper


def random_config(seed):
    draw = random.Random(seed)
    tensor, expert, pipeline = draw.choice([1, 2, 4]), draw.choice([1, 2]), draw.randint(1, 3)
    virtual_stages = draw.randint(1, 2) if pipeline == 3 else 1  # they need a multiple of the stages as micro-batches
    parallel = dict(
        tensor=tensor,
        expert=expert,
        pipeline=pipeline,
        virtual_stages=virtual_stages,
        data=draw.randint(1, 3),
        micro_batch_num=3,
        optimizer_shard=draw.random() < 0.7,
        sequence_parallel=tensor > 1 and draw.random() < 0.5,
        recompute=draw.choice(["none", "selective", "full"]),
        vocab_parallel=draw.random() < 0.7,
    )
    model = dict(
        num_layers=draw.randint(3 * virtual_stages, 7),
        num_experts=2 * expert * draw.randint(expert - 1, 1),
        dropout_rate=draw.choice([0.0, 0.1]),
        param_init_dtype=draw.choice(["float32", "float16"]),
    )
    if model["num_experts"] and parallel["sequence_parallel"] and parallel["recompute"] == "full":  # refused
        parallel["recompute"] = "selective"
    return config_of(parallel, model)


@pytest.mark.parametrize("seed", range(20))
def test_all_ranks_of_a_stage_hold_and_send_alike(seed):
    """The report relies on this, because it shows one line for each stage."""
    config = random_config(seed)
    plan = Plan.of(config.parallel, config.model)
    for stage in range(plan.pipeline):
        ranks = plan.group(plan.at_stage(0, stage), "data", "expert", "tensor")
        assert len({rank_memory(config, rank) for rank in ranks}) == 1
        assert len({tuple(communication(config, rank)) for rank in ranks}) == 1


@pytest.mark.parametrize("seed", range(20))
def test_totals_over_ranks(seed):
    """Equal parts on several ranks count once. Then all ranks together hold each number and its moments once."""
    config = random_config(seed)
    plan, shapes = Plan.of(config.parallel, config.model), parameter_shapes(config.model)
    weights, moments, on_ranks = {}, {}, 0
    for rank in range(plan.world_size):
        at = plan.coordinates(rank)
        for name, shape in shapes.items():
            if at.pipeline in stages(name, plan):
                held, updated = box(name, shape, plan, at), optimizer_box(name, shape, plan, at)
                weights[name, held], moments[name, updated] = held.size, updated.size
                on_ranks += 2 * 4 * updated.size
    assert sum(weights.values()) == sum(moments.values()) == config.model.num_parameters
    assert sum(rank_memory(config, rank).moments for rank in range(plan.world_size)) == on_ranks
