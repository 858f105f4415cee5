"""Ranks that are killed, are told to stop, or get bad input."""

import os
import signal

import pytest

from tests.distributed.test_training import TOLERANCE
from tests.support.distributed_runs import (
    ROWS,
    STEPS,
    TRAIN,
    Run,
    checkpoints,
    differences,
    finish_all,
    last_step,
    launch,
    process_of,
    wait_for_step,
)
from tests.support.programs import TINY, random_ids, write_mindrecord

ENDLESS = {"steps": 100000, "save_interval": 1}
QUICK = {"model": {"num_layers": 2}, "micro_batches": 1}  # for the run that is compiled three times
SECONDS = 60  # all ranks must end within this time after one has ended


def test_a_run_that_was_stopped_and_killed_comes_to_the_same(data, finished, tmp_path):
    plan = {"data": 2, "optimizer_shard": True}
    launcher = Run(plan, training=ENDLESS, **QUICK).start(data, tmp_path)
    wait_for_step(tmp_path, 3, launcher)
    launcher.terminate()
    status, told, errors = finish_all(launcher, tmp_path, SECONDS)
    stopped_at = last_step(tmp_path)
    assert status == 143 and "error" not in errors
    assert f"stopped by SIGTERM after step {stopped_at}; the same command goes on from there" in told
    assert checkpoints(tmp_path)[-1] == f"step_{stopped_at:08d}"

    launcher = Run(plan, training=ENDLESS, **QUICK).start(data, tmp_path)
    wait_for_step(tmp_path, stopped_at + 4, launcher)
    os.kill(process_of(tmp_path, 1), signal.SIGKILL)
    status, told, errors = finish_all(launcher, tmp_path, SECONDS)
    assert status == 137 and "error: rank 1 was killed by SIGKILL" in errors
    assert f"going on from {tmp_path}/checkpoint/step_{stopped_at:08d}" in told
    assert stopped_at + 4 <= last_step(tmp_path) < STEPS

    status, told, errors = Run(plan, **QUICK).finish(data, tmp_path)
    assert status == 0, errors
    assert "going on from" in told
    found = differences(tmp_path, finished(Run(**QUICK)))
    assert all(found[kind] <= limit for kind, limit in TOLERANCE.items()), found


@pytest.fixture
def unreadable(tmp_path):
    """Return a file with an unknown id in a record that only the second of two ranks reads."""
    ids = random_ids(ROWS)
    ids[ROWS // 4 + 1, 3] = TINY.vocab_size
    write_mindrecord(tmp_path / "train.mindrecord", ids)
    return tmp_path / "train.mindrecord"


BAD = {
    "fewer ranks than the plan has": ({"tensor": 2, "pipeline": 2}, [], ["2 ranks were started", "makes 4"]),
    "more ranks than the plan has": ({}, [], ["2 ranks were started", "makes 1", "--parallel.data"]),
    "a plan that does not divide": ({"tensor": 2}, ["--model.num_heads=1"], ["parallel.tensor 2", "num_heads 1"]),
    "too few micro-batches": (
        {"pipeline": 2},
        ["--parallel.micro_batch_num=1"],
        ["1 micro-batches", "parallel.micro_batch_num 2"],
    ),
    "data that is not there": ({"data": 2}, ["--data.train=nowhere"], ["'nowhere'"]),
    "a record that only one rank reads": (
        {"data": 2},
        ["--data.train={unreadable}", "--data.shuffle=false"],
        ["train.mindrecord: record 3", "vocab_size 50"],
    ),
}


@pytest.mark.parametrize("plan, more, told", BAD.values(), ids=BAD.keys())
def test_bad_input_is_told_once(data, unreadable, tmp_path, plan, more, told):
    output = tmp_path / "output"
    flags = Run(plan).flags(data, output) + [flag.format(unreadable=unreadable) for flag in more]
    status, _, errors = finish_all(launch(2, TRAIN, *flags, folder=tmp_path), tmp_path, SECONDS)
    lines = [line for line in errors.splitlines() if line and not line.startswith("training:")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), errors
    assert all(part in lines[0] for part in told), errors
    assert not (output / "checkpoint").exists()
