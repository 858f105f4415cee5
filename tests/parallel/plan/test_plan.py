"""The numbering of ranks, compared with numpy's row-major order, and the checks of a plan's settings."""

import random

import numpy as np
import pytest

from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.plan import AXES, Coordinates, Plan
from src.training.config import TrainConfig

SMALL = dict(hidden_size=32, num_layers=3, num_heads=4, vocab_size=52)


def random_plan(seed):
    """Return a plan of up to 5 x 4 x 3 x 4 ranks, half of them with virtual stages."""
    draw = random.Random(seed)
    pipeline = draw.randint(1, 5)
    virtual_stages = draw.choice([1, 1, 2, 3]) if pipeline > 1 else 1
    return Plan(
        pipeline,
        draw.randint(1, 4),
        draw.randint(1, 3),
        draw.randint(1, 4),
        draw.random() < 0.5,
        draw.randint(max(2, pipeline * virtual_stages), 20),
        virtual_stages=virtual_stages,
        turns_back=virtual_stages > 1 and draw.random() < 0.5,
    )


def grid(plan):
    """Return all ranks as an array (pipeline, data, expert, tensor)."""
    shape = tuple(getattr(plan, axis) for axis in AXES)
    return np.arange(plan.world_size).reshape(shape)


@pytest.mark.parametrize("seed", range(30))
def test_ranks_are_numbered_as_a_row_major_device_matrix(seed):
    plan = random_plan(seed)
    ranks = grid(plan)
    assert plan.world_size == ranks.size
    for place, rank in np.ndenumerate(ranks):
        at = Coordinates(*place)
        assert plan.rank(at) == rank and plan.coordinates(int(rank)) == at


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_lines_and_planes_of_the_mesh(seed):
    plan = random_plan(seed)
    ranks = grid(plan)
    for axes in [(), *((axis,) for axis in AXES), ("data", "expert"), ("pipeline", "tensor"), AXES]:
        seen = []
        for place, rank in np.ndenumerate(ranks):
            expected = ranks[tuple(slice(None) if axis in axes else i for axis, i in zip(AXES, place, strict=True))]
            group = plan.group(int(rank), *axes)
            assert group == tuple(expected.ravel())
            seen += group if group[0] == rank else ()
        assert sorted(seen) == list(range(plan.world_size)), "each rank is in exactly one group"


@pytest.mark.parametrize("seed", range(30))
def test_layers_are_spread_evenly_and_in_order(seed):
    plan = random_plan(seed)
    of_chunks = [plan.layers_of_chunk(chunk) for chunk in range(plan.num_chunks)]
    assert [layer for layers in of_chunks for layer in layers] == list(range(plan.num_layers))
    sizes = [len(layers) for layers in of_chunks]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1
    assert sorted(chunk for stage in range(plan.pipeline) for chunk in plan.chunks(stage)) == list(range(len(sizes)))
    for stage in range(plan.pipeline):
        assert len(plan.chunks(stage)) == plan.virtual_stages
        layers = [layer for chunk in plan.chunks(stage) for layer in of_chunks[chunk]]
        assert list(plan.layers(stage)) == layers
        assert [plan.stage_of_layer(layer) for layer in layers] == [stage] * len(layers)


@pytest.mark.parametrize("seed", range(10))
def test_data_ranks_and_neighbouring_stages(seed):
    plan = random_plan(seed)
    ranks = grid(plan)
    assert plan.data_ranks == plan.data * plan.expert
    for stage in range(plan.pipeline):
        for part in range(plan.tensor):
            own_data = [plan.data_rank(int(rank)) for rank in ranks[stage, :, :, part].ravel()]
            assert own_data == list(range(plan.data_ranks))
        assert [plan.at_stage(int(rank), stage) for rank in ranks[0].ravel()] == ranks[stage].ravel().tolist()


def test_eight_ranks_by_hand():
    plan = Plan(pipeline=2, data=2, tensor=2, num_layers=5)
    assert [plan.coordinates(rank) for rank in (0, 1, 2, 5, 7)] == [
        Coordinates(0, 0, 0, 0),
        Coordinates(0, 0, 0, 1),
        Coordinates(0, 1, 0, 0),
        Coordinates(1, 0, 0, 1),
        Coordinates(1, 1, 0, 1),
    ]
    assert [plan.group(6, axis) for axis in AXES] == [(2, 6), (4, 6), (6,), (6, 7)]
    assert [list(plan.layers(stage)) for stage in (0, 1)] == [[0, 1, 2], [3, 4]]


def test_virtual_stages_by_hand():
    """Seven layers make chunks of 2, 2, 2 and 1, around two stages or over them and back."""
    around = Plan(pipeline=2, virtual_stages=2, num_layers=7)
    assert [around.chunks(stage) for stage in (0, 1)] == [(0, 2), (1, 3)]
    assert [around.layers(stage) for stage in (0, 1)] == [(0, 1, 4, 5), (2, 3, 6)]
    assert (around.last_stage, [around.sends(stage) for stage in (0, 1)]) == (1, [(2, 1), (1, 2)])
    back = Plan(pipeline=2, virtual_stages=2, num_layers=7, turns_back=True)
    assert [back.chunks(stage) for stage in (0, 1)] == [(0, 3), (1, 2)]
    assert [back.layers(stage) for stage in (0, 1)] == [(0, 1, 6), (2, 3, 4, 5)]
    assert (back.last_stage, [back.sends(stage) for stage in (0, 1)]) == (0, [(1, 1), (1, 1)])
    deep = Plan(pipeline=3, virtual_stages=2, num_layers=6)
    assert [deep.sends(stage) for stage in range(3)] == [(2, 1), (2, 2), (1, 2)]


@pytest.mark.parametrize("rank", [-1, 8])
def test_a_rank_that_is_not_there(rank):
    with pytest.raises(InputError, match=f"rank {rank} is outside this plan of 8 ranks"):
        Plan(data=8).coordinates(rank)


def test_the_plan_of_a_configuration():
    parallel = ParallelConfig(world_size=24, tensor=2, pipeline=3, expert=2, optimizer_shard=True)
    assert Plan.of(parallel, PanguAlphaConfig(**SMALL)) == Plan(3, 2, 2, 2, True, 3)
    whole = ParallelConfig(tensor=2, vocab_parallel=False)
    assert Plan.of(whole, PanguAlphaConfig(**SMALL)) == Plan(tensor=2, num_layers=3, vocab_parallel=False)
    laps = ParallelConfig(pipeline=2, virtual_stages=2)
    assert Plan.of(laps, PanguAlphaConfig(**SMALL)) == Plan(2, num_layers=3, virtual_stages=2)
    laps.pipeline_scheduler = "zero_bubble_v"
    assert Plan.of(laps, PanguAlphaConfig(**SMALL)).turns_back
    assert ParallelConfig(data=2, tensor=4).world_size == 8
    train_config(dict(vocab_size=53), {}, dict(tensor=2, vocab_parallel=False))  # 2 need not divide 53


@pytest.mark.parametrize(
    "settings, told",
    [
        (
            dict(world_size=8, data=3, tensor=2),
            r"parallel.data 3 x tensor 2 x pipeline 1 x expert 1 makes 6 ranks, but "
            r"parallel.world_size is 8; 8 ranks would fit the last three",
        ),
        (dict(world_size=8, tensor=3), r"data 2 x tensor 3 .* makes 6 ranks, but .* is 8; 9 ranks would fit"),
        (dict(world_size=2, tensor=4), r"makes 4 ranks, but parallel.world_size is 2; 4 ranks would fit"),
        (dict(tensor=0), "parallel.tensor is 0; it must be at least 1"),
        (dict(micro_batch_num=0), "parallel.micro_batch_num is 0"),
        (
            dict(tensor=2, recompute_slice_activation=True),
            "recompute_slice_activation needs parallel.recompute full, and",
        ),
        (
            dict(recompute=True, recompute_slice_activation=True),
            "slice_activation .* parallel.tensor of 2 or more without",
        ),
        (dict(data=2, sequence_parallel=True), "sequence_parallel needs parallel.tensor of 2 or more"),
        (dict(virtual_stages=0), "parallel.virtual_stages is 0; it must be at least 1"),
        (dict(virtual_stages=2), "virtual_stages 2 cuts the layers .* it needs parallel.pipeline of 2 or more"),
        (
            dict(pipeline=2, pipeline_scheduler="zero_bubble_v"),
            "zero_bubble_v needs parallel.virtual_stages 2, not 1: the layers go over the stages and back",
        ),
    ],
)
def test_impossible_meshes(settings, told):
    with pytest.raises(InputError, match=told):
        ParallelConfig(**settings)


def train_config(model, training, parallel):
    return TrainConfig(
        PanguAlphaConfig(**SMALL | model),
        DataConfig(),
        TrainingConfig(**training),
        ParallelConfig(**parallel),
        GenerationConfig(),
    )


@pytest.mark.parametrize(
    "model, training, parallel, told",
    [
        (dict(num_heads=2), {}, dict(tensor=4), "parallel.tensor 4 does not divide model.num_heads 2; 2 does"),
        (dict(vocab_size=50), {}, dict(tensor=4), "parallel.tensor 4 does not divide model.vocab_size 50; 2 does"),
        (
            dict(ffn_hidden_size=90),
            {},
            dict(tensor=4),
            "parallel.tensor 4 does not divide model.ffn_hidden_size 90; 3 does",
        ),
        (
            dict(seq_length=30),
            {},
            dict(tensor=4, sequence_parallel=True),
            "parallel.tensor 4 does not divide model.seq_length 30; 3 does",
        ),
        (
            {},
            {},
            dict(pipeline=4, micro_batch_num=4),
            r"parallel.pipeline 4 is more than the model's 3 layers \(the query "
            r"layer counted\); at most that many fit",
        ),
        (
            {},
            {},
            dict(pipeline=3, micro_batch_num=2),
            r"parallel.micro_batch_num 2 x training.accumulation_steps 1 gives 2 micro-batches, fewer than the 3 "
            r"stages \(parallel.pipeline\); parallel.micro_batch_num 3 would fit",
        ),
        ({}, dict(accumulation_steps=2), dict(pipeline=3), r"gives 2 micro-batches, .*micro_batch_num 2 would fit"),
        (
            dict(num_layers=5),
            {},
            dict(pipeline=2, virtual_stages=3),
            r"parallel.pipeline 2 x virtual_stages 3 makes 6 chunks, more than the model's 5 layers \(the query layer "
            "counted\\); parallel.virtual_stages 2 with parallel.pipeline_scheduler 1f1b would fit",
        ),
        (
            dict(num_layers=6),
            dict(accumulation_steps=2),
            dict(pipeline=3, virtual_stages=2, micro_batch_num=2),
            r"virtual_stages 2 needs a multiple of the 3 stages \(parallel.pipeline\) as the number of micro-batches, "
            "which is 4: parallel.micro_batch_num 3 would fit",
        ),
        (
            dict(num_layers=6),
            {},
            dict(pipeline=3, virtual_stages=2, micro_batch_num=5, pipeline_scheduler="zero_bubble_v"),
            r"zero_bubble_v needs twice as many micro-batches as the 3 stages \(parallel.pipeline\), a limit of "
            "MindSpore; this run's steps have 5: parallel.micro_batch_num 6 would fit",
        ),
        (
            dict(num_layers=6),
            {},
            dict(pipeline=3, virtual_stages=2, micro_batch_num=6, pipeline_scheduler="zero_bubble_v"),
            "parallel.pipeline_scheduler need parallel.backend semi_auto, which this run does not use",
        ),
        (
            dict(num_experts=4),
            {},
            dict(tensor=2, sequence_parallel=True, recompute="full"),
            r"recompute full with parallel.sequence_parallel and experts .* give parallel.recompute selective",
        ),
        ({}, {}, dict(expert=2), "parallel.expert 2 does not divide model.num_experts 0; 1 does"),
        (dict(num_experts=6), {}, dict(expert=4), "parallel.expert 4 does not divide model.num_experts 6; 3 does"),
        (dict(num_experts=2), {}, dict(expert=4), "parallel.expert 4 does not divide model.num_experts 2; 2 does"),
        ({}, dict(optimizer="lamb"), dict(tensor=2), "lamb needs the norms of whole parameters: use adamw"),
        ({}, dict(optimizer="lamb"), dict(data=2, optimizer_shard=True), "lamb needs the norms of whole parameters"),
        (dict(num_experts=4), dict(optimizer="lamb"), dict(expert=2), "lamb needs the norms of whole parameters"),
        *(
            (
                {},
                {},
                dict(world_size=8, strategy_search=True) | chosen,
                "strategy_search leaves the plan to MindSpore's",
            )
            for chosen in (dict(tensor=2), dict(optimizer_shard=True), dict(vocab_parallel=False))
        ),
    ],
)
def test_plans_that_do_not_fit_the_model(model, training, parallel, told):
    with pytest.raises(InputError, match=told) as raised:
        train_config(model, training, parallel)
    assert "\n" not in str(raised.value)


def test_plans_that_do_fit():
    config = train_config(
        dict(num_experts=4),
        dict(accumulation_steps=3),
        dict(tensor=2, pipeline=3, expert=2, sequence_parallel=True, optimizer_shard=True),
    )
    assert config.micro_steps == 3
    assert train_config({}, dict(optimizer="lamb"), dict(data=2, pipeline=2, micro_batch_num=2)).micro_steps == 2


def test_prediction_needs_no_micro_batches():
    config = RunConfig(
        PanguAlphaConfig(**SMALL), DataConfig(), TrainingConfig(), ParallelConfig(pipeline=3), GenerationConfig()
    )
    assert config.micro_steps == 1
