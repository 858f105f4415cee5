"""The timetable of a pipeline: dependencies, rendezvous, waiting and memory, compared with the papers' numbers."""

import math
from collections import Counter, deque

import pytest

from src.parallel.plan.costs import bubble
from src.parallel.plan.plan import Plan
from src.parallel.plan.schedule import Schedule, Work, in_flight, messages_to_stages
from tests.support.plans import config_of

FORWARD, BACKWARD = 1.0, 2.5  # how long a pass through a chunk takes
CASES = [
    (2, 1, 2),
    (2, 1, 5),
    (3, 1, 3),
    (4, 1, 9),
    (2, 2, 2),
    (2, 2, 6),
    (2, 5, 4),
    (3, 2, 3),
    (3, 3, 9),
    (4, 2, 8),
    (5, 2, 10),
]


def schedule_of(stages, laps, micro_batches):
    return Schedule(Plan(stages, num_layers=stages * laps, virtual_stages=laps), micro_batches)


@pytest.mark.parametrize("stages, laps, micro_batches", CASES)
def test_each_pass_finds_its_input_and_none_is_left_out(stages, laps, micro_batches):
    """What a pass needs was computed in the slot before, and crossed at its end."""
    schedule = schedule_of(stages, laps, micro_batches)
    table = [{} for _ in range(stages)]
    for stage in range(stages):
        forward, backward = schedule.forward(stage), schedule.backward(stage)
        works = {Work(lap, number) for lap in range(laps) for number in range(micro_batches)}
        for passes in (forward, backward):
            assert len(passes) == len(works) and set(passes.values()) == works
        table[stage] = {("forward", work): slot for slot, work in forward.items()}
        table[stage] |= {("backward", work): slot for slot, work in backward.items()}
    last = stages * laps - 1
    for number in range(micro_batches):
        for chunk in range(last + 1):
            lap, stage = divmod(chunk, stages)
            mine, work = table[stage], Work(lap, number)
            assert mine["backward", work] >= mine["forward", work]  # a slot's forward pass comes first
            for kind, before in (("forward", chunk - 1), ("backward", chunk + 1)):
                if 0 <= before <= last:
                    there = table[before % stages][kind, Work(before // stages, number)]
                    assert mine[kind, work] == there + 1


def played(schedule, stages):
    """Return when all stages are ready, if each makes its slots one after the other and neighbours wait for each
    other."""
    todo = [deque() for _ in range(stages)]
    for stage, left in enumerate(todo):
        for slot in schedule.of_stage(stage):
            left += [FORWARD] * bool(slot.forward) + [BACKWARD] * bool(slot.backward)
            left += [(stage if is_with_next else (stage - 1) % stages,) for is_with_next in slot.exchanges]
    now = [0.0] * stages
    while any(todo):
        for stage, left in enumerate(todo):
            while left and isinstance(left[0], float):
                now[stage] += left.popleft()
        edges = [
            edge
            for edge in range(stages)
            if all(todo[stage] and todo[stage][0] == (edge,) for stage in (edge, (edge + 1) % stages))
        ]
        assert edges or not any(todo), "the stages wait for each other for ever"
        for edge in edges:
            pair = edge, (edge + 1) % stages
            for stage in pair:
                todo[stage].popleft()
            now[pair[0]] = now[pair[1]] = max(now[stage] for stage in pair)
    return max(now)


@pytest.mark.parametrize("stages, laps, micro_batches", CASES)
def test_stages_never_block_each_other_and_wait_as_the_formula_says(stages, laps, micro_batches):
    took = played(schedule_of(stages, laps, micro_batches), stages)
    busy = (FORWARD + BACKWARD) * micro_batches * laps
    assert math.isclose(1 - busy / took, bubble(stages, micro_batches, laps))


@pytest.mark.parametrize("stages, laps, micro_batches", CASES)
def test_passes_in_flight_are_those_of_the_papers(stages, laps, micro_batches):
    """1F1B: as many as stages from here to the end. Interleaved: the warm-up of Megatron-LM and one more; on the first
    stage p v + p - 1 chunks, that is layers x (1 + (p - 1) / (p v)) of arXiv 2205.05198, section 5."""
    schedule = schedule_of(stages, laps, micro_batches)
    for stage in range(stages):
        after = stages - 1 - stage
        most = after + 1 if laps == 1 else (laps - 1) * stages + 2 * after + 1
        assert schedule.in_flight(stage).total() == min(most, micro_batches * laps)
        kept, largest = Counter(), 0
        for slot in schedule.of_stage(stage):
            kept[slot.forward.lap if slot.forward else None] += 1
            largest = max(largest, sum(kept[lap] for lap in range(laps)))
            kept[slot.backward.lap if slot.backward else None] -= 1
        assert largest == schedule.in_flight(stage).total() and not any(kept[lap] for lap in range(laps))


def test_two_stages_with_two_chunks_by_hand():
    schedule = schedule_of(2, 2, 4)
    orders = []
    for stage in range(2):
        order = []
        for slot in schedule.of_stage(stage):
            for kind, work in (("F", slot.forward), ("B", slot.backward)):
                order += [f"{kind}{work.micro_batch}{'ab'[work.lap]}"] if work else []
        orders.append(" ".join(order))
    assert orders == [
        "F0a F1a F0b F1b F2a B0b F3a B1b F2b B0a F3b B1a B2b B3b B2a B3a",
        "F0a F1a F0b B0b F1b B1b F2a B0a F3a B1a F2b B2b F3b B3b B2a B3a",
    ]


@pytest.mark.parametrize("stages, laps, micro_batches", CASES)
def test_both_neighbours_make_the_exchanges_of_the_formula(stages, laps, micro_batches):
    """Each of the ring's edges has as many on both sides (docs/parallel.md)."""
    schedule = schedule_of(stages, laps, micro_batches)
    found = [Counter() for _ in range(stages)]
    for stage in range(stages):
        for slot in schedule.of_stage(stage):
            found[stage].update(stage if is_with_next else (stage - 1) % stages for is_with_next in slot.exchanges)
        assert found[stage].total() == schedule.exchanges(stage)
    for lower in range(stages):
        passes, alone = micro_batches * laps, stages - 1 - lower
        more = alone if laps == 1 else 2 * alone - 1 + (laps - 1) * stages
        expected = passes + min(passes, more)
        if lower == stages - 1:
            expected = (laps - 1) * (micro_batches + stages) + micro_batches // stages - 1 if laps > 1 else 0
        assert found[lower][lower] == found[(lower + 1) % stages][lower] == expected


def test_messages_by_hand():
    """Two stages, two chunks and 4 micro-batches make 8 passes of each kind. Between stages 0 and 1, results cross in
    slots 0 to 7 and gradients in slots 3 to 10: 11 exchanges. Around the ring 4 results cross, in slots 1, 2, 5 and 6,
    and 4 gradients, in slots 4, 5, 8 and 9: 7 exchanges. The compiler sends no zeros."""
    parallel = dict(pipeline=2, virtual_stages=2, micro_batch_num=4)
    config = config_of(parallel, dict(num_layers=4))
    plan = Plan.of(config.parallel, config.model)
    assert [messages_to_stages(config, plan, stage) for stage in (0, 1)] == [11 + 7] * 2
    assert [in_flight(config, plan, stage) for stage in (0, 1)] == [(3, 2), (2, 1)]
    compiled = config_of(parallel | dict(device_target="Ascend"), dict(num_layers=4))
    assert [messages_to_stages(compiled, plan, stage) for stage in (0, 1)] == [4 * 3] * 2
    v = config_of(parallel | dict(device_target="Ascend", pipeline_scheduler="zero_bubble_v"), dict(num_layers=4))
    plan = Plan.of(v.parallel, v.model)
    assert [messages_to_stages(v, plan, stage) for stage in (0, 1)] == [4 * 2] * 2
    assert in_flight(v, plan, 0) == in_flight(v, plan, 1) == (2, 2)
