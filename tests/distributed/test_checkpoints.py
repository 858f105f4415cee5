"""Runs that resume under another plan than the saved one. They have the losses of one process without interruption."""

import shutil
from dataclasses import replace

import pytest

from src.checkpoint import store
from tests.distributed.test_training import FOUR_LAYERS, QUICK, SLOW, TOLERANCE
from tests.support.distributed_runs import DENSE, MOE, Run, differences
from tests.support.programs import run

ALONE = Run()
PP2, EP2 = {"pipeline": 2}, {"expert": 2}
CASES = {
    "dp2 with ZeRO, 1": (QUICK["dp2 with ZeRO"], DENSE, [({}, 20)]),
    "dp2 with ZeRO, 1, pp2": (QUICK["dp2 with ZeRO"], DENSE, [({}, 15), (PP2, 20)]),
    "dp2 x tp2, pp2": (SLOW["dp2 x tp2"], DENSE, [(PP2, 20)]),
    "dp2 x tp2, 1": (SLOW["dp2 x tp2"], DENSE, [({}, 20)]),
    "tp2 with the word table whole, tp2": (SLOW["tp2, the word table whole"], DENSE, [({"tensor": 2}, 20)]),
    "tp2 x pp2, dp2 with ZeRO": (QUICK["tp2 x pp2"], DENSE, [({"data": 2, "optimizer_shard": True}, 20)]),
    "pp2 in virtual stages, tp2, pp2 in virtual stages": (
        SLOW["pp2 in virtual stages"],
        FOUR_LAYERS,
        [({"tensor": 2}, 15), (PP2 | {"virtual_stages": 2}, 20)],
    ),
    "tp2 x pp2 in virtual stages, pp2": (SLOW["tp2 x pp2 in virtual stages"], FOUR_LAYERS, [(PP2, 20)]),
    "experts: dp2 x ep2 with ZeRO, pp2, ep2": (SLOW["experts over dp2 x ep2 with ZeRO"], MOE, [(PP2, 15), (EP2, 20)]),
}


@pytest.mark.parametrize(
    "saved, model, then",
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * (number > 0))
        for number, (name, case) in enumerate(CASES.items())
    ],
)
def test_the_loss_goes_on_under_another_plan(data, finished, tmp_path, saved, model, then):
    """The second plan resumes from the checkpoint of step 10, runs to a later step and saves; the third resumes
    there."""
    output = tmp_path / "run"
    shutil.copytree(finished(saved), output)
    shutil.rmtree(output / "checkpoint" / "step_00000020")
    step = 10
    for plan, end in then:
        status, told, errors = Run(plan, model, {"steps": end}, saved.micro_batches).finish(data, output)
        assert status == 0, errors
        assert f"going on from {output}/checkpoint/step_{step:08d}" in told
        step = end
    found = differences(output, finished(replace(saved, plan={})))
    assert all(found[kind] <= limit for kind, limit in TOLERANCE.items()), found


@pytest.mark.slow
def test_a_run_in_virtual_stages_is_merged_and_goes_on_in_one_process(data, finished, tmp_path):
    saved, output = SLOW["pp2 in virtual stages"], tmp_path / "run"
    shutil.copytree(finished(saved), output)
    split = output / "checkpoint" / "step_00000010"
    status, _, errors = run("-m", "src.checkpoint.merge", "--checkpoint", split, "--output", tmp_path / "merged")
    assert status == 0, errors
    assert len(store.read_state(tmp_path / "merged")["files"]) < len(store.read_state(split)["files"])
    shutil.rmtree(output / "checkpoint")
    shutil.copytree(tmp_path / "merged", split)
    status, told, errors = saved.alone.finish(data, output)
    assert status == 0 and f"going on from {split}" in told, errors
    found = differences(output, finished(saved.alone))
    assert all(found[kind] <= limit for kind, limit in TOLERANCE.items()), found
