"""Which rank holds and writes which part, for random plans, compared with slices of whole numpy arrays."""

import random
from itertools import product

import numpy as np
import pytest

from src.parallel.plan.holder import Holder
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import Box
from tests.support.checkpoints import SHAPES, held_values, plan, whole_values

NAMES = list(whole_values())
PLANS = [
    plan(pipeline=pipeline, data=data, expert=expert, tensor=tensor, optimizer_shard=shard)
    for pipeline, data, expert, tensor, shard in product((1, 2, 3), (1, 2, 3), (1, 2, 4), (1, 2), (False, True))
]
SOME_PLANS = random.Random(0).sample(PLANS, 30)


def written_counts(whole, of):
    """Count for each element of each whole array how many ranks write it."""
    counts = {name: np.zeros(values.shape, np.int32) for name, values in whole.items()}
    for rank in range(of.world_size):
        holder = Holder(of, rank, SHAPES)
        for name in held_values(whole, of, rank):
            if holder.writes(name):
                counts[name][holder.box(name).index] += 1
    return counts


@pytest.mark.parametrize("of", SOME_PLANS, ids=str)
def test_each_element_is_written_by_one_rank_the_lowest_that_has_it(of):
    whole = whole_values()
    assert all((count == 1).all() for count in written_counts(whole, of).values())
    seen = set()
    for rank in range(of.world_size):
        holder = Holder(of, rank, SHAPES)
        for name, values in held_values(whole, of, rank).items():
            shape, box = holder.place(name, values.shape)
            assert shape == whole[name].shape
            assert holder.writes(name) == ((name, box) not in seen)
            seen.add((name, box))
            np.testing.assert_array_equal(whole[name][box.index].view(np.uint8), np.array(values).view(np.uint8))


def test_one_process_holds_and_writes_all_of_whatever_it_has():
    for holder in (Holder(), Holder(plan(), 0, SHAPES)):
        assert holder.writes("any.name") and holder.writes("backbone.blocks.77.layernorm1.gamma")
        assert holder.place("any.name", (3, 4)) == ((3, 4), Box((0, 0), (3, 4)))


def test_a_slice_of_another_size_is_no_ranks():
    with pytest.raises(ValueError, match="rank 1 holds"):
        Holder(plan(tensor=2), 1, SHAPES).place(NAMES[0], SHAPES[NAMES[0]])


def test_a_plan_of_2048_ranks_is_arithmetic():
    of = Plan(16, 16, 1, 8, True, num_layers=64)
    names = {f"backbone.blocks.{layer}.attention.dense1.weight": (1024, 1024) for layer in range(63)}
    writers = [rank for rank in range(of.world_size) if Holder(of, rank, names).writes(next(iter(names)))]
    assert writers == list(range(8))  # one rank of the first stage for each of 8 tensor parts
