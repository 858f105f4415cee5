"""Plans that do not fit a device, and the nearest ones that do."""

import re
from contextlib import nullcontext

import pytest

from src.common.cli import parse
from src.common.errors import InputError
from src.inference.config import CheckpointConfig
from src.inference.mindspore import load
from src.parallel.plan import fitting
from src.parallel.plan.costs import rank_memory
from src.training.config import TrainConfig, recipe_of
from tests.support.programs import ROOT, run

BARE = ["--mode=2.6B", "--parallel.device_target=Ascend", "--model.compute_dtype=float16"]


def config_of(*flags, recipe=False):
    return parse(TrainConfig, "train.py", flags, after_mode=recipe_of(flags) if recipe else {})


@pytest.mark.parametrize(
    "flags, gigabytes",
    [
        (["--parallel.device_target=Ascend"], 32),
        (["--parallel.device_target=Ascend", "--parallel.chip=A2"], 64),
        (["--parallel.device_target=GPU"], 80),
        (["--parallel.device_target=Ascend", "--parallel.device_memory=12.5"], 12.5),
    ],
    ids=str,
)
def test_memory_is_that_of_the_device(flags, gigabytes):
    assert fitting.device_memory(config_of("--mode=tiny", *flags).parallel) == gigabytes


def test_the_fullest_stage_counts():
    config = config_of(*BARE, "--parallel.tensor=8", "--parallel.pipeline=4", "--parallel.micro_batch_num=4")
    totals = [rank_memory(config, 8 * stage).total for stage in range(4)]
    need = fitting.need_of(config)
    assert need.bytes == max(totals) and totals[need.stage] == max(totals) and need.limit == 32 * 10**9


@pytest.mark.parametrize("flags", [["--parallel.tensor=8", "--training.batch_size=32"], ["--parallel.data=8"]], ids=str)
def test_the_nearest_plan_fits_and_has_as_many_tokens(flags):
    config = config_of(*BARE, *flags)
    with pytest.raises(InputError, match="does not fit") as refused:
        fitting.require_fit(config)
    told = re.search(r"the nearest plan that fits, with ([\d.]+) GB: (.*)", str(refused.value))
    changed = config_of(*BARE, *flags, *told[2].split())
    fitting.require_fit(changed)
    assert fitting.need_of(changed).bytes == pytest.approx(float(told[1]) * 1e9, abs=5e7)
    of_step = [one.parallel.data * one.parallel.micro_batch_num * one.training.batch_size for one in (config, changed)]
    assert of_step[0] == of_step[1]


def test_recompute_comes_before_another_split():
    config = config_of(*BARE, "--parallel.tensor=8", "--training.batch_size=16", "--parallel.device_memory=24")
    assert re.search(r"GB: --parallel.recompute (selective|full)$", fitting.nearest_fit(config))


def test_no_plan_may_fit():
    config = config_of("--mode=200B", "--parallel.device_target=Ascend", "--parallel.tensor=8")
    with pytest.raises(InputError, match="no plan near it fits as many devices: take more of them"):
        fitting.require_fit(config)


@pytest.mark.parametrize("flags", [["--parallel.strategy_search"], ["--training.optimizer=lamb"]], ids=str)
def test_a_recipe_leaves_out_what_the_flags_cannot_have(flags):
    config = config_of("--mode=2.6B", "--parallel.device_target=Ascend", "--parallel.data=8", *flags, recipe=True)
    assert config.parallel.recompute == "full" and not config.parallel.optimizer_shard


def test_nothing_is_known_of_a_plan_that_is_searched_for():
    """By data parallel alone it would not fit."""
    flags = ["--mode=13B", "--parallel.device_target=Ascend", "--parallel.world_size=8"]
    assert not fitting.need_of(config_of(*flags, recipe=True)).fits
    fitting.require_fit(config_of(*flags, "--parallel.strategy_search", recipe=True))


def test_a_cpu_s_memory_is_checked_elsewhere():
    fitting.require_fit(config_of("--mode=200B"))


def test_each_mode_has_a_recipe_that_is_told_and_that_flags_win_over():
    device = "--parallel.device_target=Ascend"
    config = config_of("--mode=13B", device, "--parallel.recompute=selective", recipe=True)
    assert (config.model.compute_dtype, config.model.softmax_compute_dtype) == ("float16", "float32")
    assert config.parallel.optimizer_shard and config.parallel.recompute == "selective"
    assert config_of("--mode=13B", recipe=True).model.compute_dtype == "float32"
    for mode in ("tiny", "350M", "1.3B", "2.6B", "13B", "200B", "60B-moe"):
        assert config_of(f"--mode={mode}", device, recipe=True).model.compute_dtype == "float16"
    status, output, _ = run(
        ROOT / "train.py", "--mode=13B", device, "--parallel.tensor=8", "--training.batch_size=64", "--plan"
    )
    assert status == 0 and output.startswith("on a device this --mode has model.compute_dtype float16, parallel.")
    assert "\nDoes not fit: a rank of stage 0 needs " in output


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--mode=13B"], r"holds 51.\d GB, a device has 32 .*; halve them \(model.param_init_dtype float16\), or"),
        (["--mode=200B", "--model.param_init_dtype=float16", "--parallel.tensor=8"], "has 32 .*; spread them over"),
        (["--mode=13B", "--model.param_init_dtype=float16"], ""),
        (["--mode=13B", "--parallel.chip=A2"], ""),
        (["--mode=13B", "--parallel.device_target=CPU"], ""),
    ],
    ids=str,
)
def test_weights_must_fit_the_device_that_generates(flags, told):
    config = parse(CheckpointConfig, "predict.py", ["--parallel.device_target=Ascend", *flags])
    with pytest.raises(InputError, match=told) if told else nullcontext():
        fitting.require_weights_fit(config)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(load, "prepare_device", lambda parallel: None)  # there is no such device here
    monkeypatch.setattr(load, "settle_chip", lambda parallel: None)
    with pytest.raises(InputError, match="the weights do not fit"):
        load.open_checkpoint(
            parse(CheckpointConfig, "predict.py", ["--parallel.device_target=Ascend", "--mode=13B"]), None
        )


def test_moments_on_the_host_have_float32_weights():
    recipe = recipe_of(["--mode=60B-moe", "--parallel.device_target=Ascend", "--parallel.optimizer_offload", "true"])
    assert recipe["model"] == {"compute_dtype": "float16"}
    assert recipe_of(["--mode=60B-moe", "--parallel.device_target=Ascend"])["model"]["param_init_dtype"] == "float16"
