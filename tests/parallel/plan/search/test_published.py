"""The table of published runs: sizes and plans are those that their names say."""

import re
from collections import Counter

import pytest

from src.parallel.plan.search.machines import MACHINES
from src.parallel.plan.search.published import published_runs

RUNS = published_runs()


def test_the_table_has_at_least_25_runs_each_with_a_source():
    assert Counter(run.machine for run in RUNS) == {"A100": 18, "A2": 14, "910A": 4}
    assert all(run.source for run in RUNS)
    assert len({(run.machine, run.name) for run in RUNS}) == len(RUNS)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.machine} {run.name}")
def test_a_model_has_the_parameters_of_its_name(run):
    """Within 10%: untied heads, rounding; 33B and 65B of LLaMA are 32.5 and 65.2."""
    number = re.search(r"(\d+(?:\.\d+)?)([BT])(\d?)", run.name)
    billions = float(f"{number[1]}.{number[3]}" if number[3] else number[1]) * (1000 if number[2] == "T" else 1)
    assert run.config.model.num_parameters / 1e9 == pytest.approx(billions, rel=0.1)


def test_ranks_are_those_of_the_source():
    for run in RUNS:
        if ranks := re.search(r"(\d+) GPUs", run.name):
            assert run.config.parallel.world_size == int(ranks[1])
    sizes = {run.name: run.config.parallel.world_size for run in RUNS if run.machine != "A100"}
    assert sizes["Pangu Ultra 135B"] == 8192
    assert sizes["GPT3 175B, 2048 tokens"] == 128 and sizes["Bloom 176B, 2048 tokens"] == 96
    assert sizes["LLaMA 65B, 2048 tokens"] == sizes["LLaMA 33B, 2048 tokens"] == 32
    assert all(size in (8, 16, 32, 96, 128, 8192) for size in sizes.values())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.machine} {run.name}")
def test_no_run_is_faster_than_its_machine(run):
    """A step's FLOPs, 6 for each parameter and token, need less than 65% of the peak, and more than 10%."""
    config = run.config
    tokens = config.training.batch_size * config.micro_steps * config.parallel.data * config.model.seq_length
    flops = 6 * tokens * config.model.num_parameters
    assert 0.1 < flops / run.seconds / config.parallel.world_size / MACHINES[run.machine].peak < 0.65
