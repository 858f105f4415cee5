"""Which plans a search tries, and which it lists."""

from dataclasses import replace
from itertools import product

import pytest

from src.common.cli import parse
from src.common.errors import InputError
from src.parallel.plan.costs import rank_memory
from src.parallel.plan.search.machines import MACHINES
from src.parallel.plan.search.shortlist import search
from src.parallel.plan.search.step_time import stage_costs, step_seconds
from src.training.config import TrainConfig

A2 = MACHINES["A2"]


def config_of(*flags):
    half = ("--model.compute_dtype=float16", "--parallel.chip=A2", "--parallel.device_target=Ascend")
    return parse(TrainConfig, "train.py", [*half, *flags])


SMALL = config_of("--mode=350M", "--model.num_layers=6", "--parallel.world_size=8", "--training.batch_size=4")
GB = 1e9


def sequences(config):
    return config.training.batch_size * config.micro_steps * config.parallel.data


def every_plan(config):
    """All plans of 8 ranks, made without the search."""
    for tensor, pipeline in ((t, p) for t in (1, 2, 4, 8) for p in (1, 2, 4) if t * p <= 8):
        for recompute, virtual in product(("none", "selective", "full"), (1, 2, 4)):
            for batch in (1, 2, 4, 8, 16, 32):
                data = 8 // tensor // pipeline
                micro = sequences(config) // data // batch
                if micro < pipeline or batch * micro * data != sequences(config):
                    continue
                if virtual > 1 and (pipeline == 1 or micro % pipeline or pipeline * virtual > 6):
                    continue  # 6 layers
                parallel = replace(
                    config.parallel,
                    tensor=tensor,
                    pipeline=pipeline,
                    data=data,
                    micro_batch_num=micro,
                    virtual_stages=virtual,
                    recompute=recompute,
                    optimizer_shard=data > 1,
                    sequence_parallel=tensor > 1,
                )
                yield replace(config, parallel=parallel, training=replace(config.training, batch_size=batch))


def seconds(config):
    return step_seconds(stage_costs(config, A2), A2.shares)


def largest(config):
    last = 8 - 8 // config.parallel.pipeline
    return max(rank_memory(config, rank).total for rank in (0, last))


EACH = sorted(map(largest, every_plan(SMALL)))  # bytes of each plan


@pytest.mark.parametrize("memory", [EACH[-1], EACH[len(EACH) // 2], EACH[len(EACH) // 8]])
def test_the_fastest_plan_of_each_size_is_found(memory):
    found = search(SMALL, A2, memory)
    fitting = [one for one in every_plan(SMALL) if largest(one) <= memory]
    sizes = {}
    for one in fitting:
        sizes.setdefault((one.parallel.tensor, one.parallel.pipeline), []).append(one)
    listed = {(one.config.parallel.tensor, one.config.parallel.pipeline): one for one in found.fitting}
    assert listed.keys() == sizes.keys() and len(found.fitting) == len(sizes)
    for size, plans in sizes.items():
        usual = [one for one in plans if one.training.batch_size >= 2] or plans  # 2,048 tokens and more
        assert listed[size].config in usual
        assert listed[size].seconds <= 1.01 * min(map(seconds, usual))
        assert listed[size].seconds == seconds(listed[size].config)
        assert listed[size].memory == largest(listed[size].config) <= memory
    assert [one.seconds for one in found.fitting] == sorted(one.seconds for one in found.fitting)


def test_less_memory_lists_fewer_plans_or_slower_ones():
    much, little = (search(SMALL, A2, memory) for memory in (EACH[-1], EACH[len(EACH) // 8]))
    assert len(little.fitting) < len(much.fitting)
    assert little.fitting[0].seconds > much.fitting[0].seconds


def test_all_plans_keep_the_sequences_of_the_settings():
    given = config_of(
        "--mode=350M",
        "--parallel.world_size=8",
        "--parallel.tensor=2",
        "--training.batch_size=3",
        "--training.accumulation_steps=2",
        "--parallel.micro_batch_num=4",
    )
    found = search(given, A2, 100 * GB)
    assert found.sequences == 3 * 2 * 4 * 4
    assert {sequences(one.config) for one in found.fitting} == {found.sequences}
    assert {one.config.training.accumulation_steps for one in found.fitting} == {1}
    assert found.given.config == given and found.tried > len(found.fitting)


def test_virtual_stages_shorten_the_bubble_of_few_micro_batches():
    found = search(config_of("--mode=2.6B", "--parallel.world_size=8", "--training.batch_size=2"), A2, 60 * GB)
    [deep] = [one for one in found.fitting if one.config.parallel.pipeline == 8]
    assert deep.config.parallel.virtual_stages > 1
    parallel = replace(deep.config.parallel, virtual_stages=1)
    assert seconds(replace(deep.config, parallel=parallel)) > deep.seconds


def test_plans_that_the_model_cannot_have_are_left_out():
    found = search(config_of("--mode=2.6B", "--model.num_heads=20", "--parallel.world_size=8"), A2, 60 * GB)
    assert {one.config.parallel.tensor for one in found.fitting} == {1, 2, 4}  # 8 does not divide 20 heads
    lamb = search(config_of("--mode=350M", "--training.optimizer=lamb", "--parallel.world_size=8"), A2, 60 * GB)
    assert {one.config.parallel.tensor for one in lamb.fitting} == {1}
    assert not any(one.config.parallel.optimizer_shard for one in lamb.fitting)


def test_a_model_that_fits_nowhere_is_one_line():
    with pytest.raises(InputError, match=r"no plan of 8 ranks fits 3 GB; that of the settings needs \d.*_size or"):
        search(config_of("--mode=13B", "--parallel.world_size=8"), A2, 3 * GB)
