"""Tests of the folder of a run: which commands go on with it, who may write into it, and what is saved there.

No step is computed here. A fake stepper gives the results of steps, so that nothing is compiled.
"""

import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

from src.common.cli import parse
from src.common.errors import InputError
from src.pangu_alpha_wrapcell import StepResult
from src.training.config import TrainConfig
from src.training.progress import LossScale, Progress
from src.training.run_folder import RunLock
from src.training.trainer import Trainer
from tests.support.programs import ROOT, metrics, random_ids, train_flags, write_mindrecord


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a file of 27 records."""
    file = tmp_path_factory.mktemp("data") / "train.mindrecord"
    write_mindrecord(file, random_ids(27))
    return file


@pytest.fixture
def trainer(data):
    """Return a function that builds a trainer; its steps give `result`."""

    def build(output, *flags, result=None, **training):
        flags = [*train_flags(data, output, **dict(steps=40) | training), *flags]
        built = Trainer(parse(TrainConfig, "train.py", flags))
        if result is not None:
            built.parts.stepper.train = lambda *_: result
        return built

    return build


def content(folder):
    """Return all files of a folder with their content, except the lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}


GOOD, OVERFLOW = StepResult(2.0, 1.0, True), StepResult(float("nan"), float("nan"), False)


@pytest.fixture
def begun(trainer, tmp_path):
    """Return the folder of a run that has done 40 of 40 steps with 3 layers."""
    trainer(tmp_path / "run", "--model.num_layers=3", result=GOOD).run()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--training.resume=false"], "holds a run .* another --training.output"),
        (["--model.num_layers=2"], r"another network \(model.num_layers 3 -> 2\)"),
        (["--model.num_heads=2"], r"another network \(model.num_heads 4 -> 2\)"),
        (["--training.init_checkpoint=elsewhere"], "began with random weights, so .*elsewhere would not be used"),
        (["--training.steps=80"], r"decay_steps 40 -> 80.*step 41 would be 0.0005.* instead of 1e-06"),
        (["--training.learning_rate=0.1"], "give --training.learning_rate 0.001 to keep .*new_schedule true"),
    ],
)
def test_a_folder_belongs_to_one_run(trainer, begun, flags, told):
    before = content(begun)
    with pytest.raises(InputError, match=told) as error:
        trainer(begun, "--model.num_layers=3", *flags)
    assert "\n" not in str(error.value)
    assert content(begun) == before


@pytest.mark.parametrize(
    "flags", [["--training.steps=80", "--training.decay_steps=40"], ["--training.steps=80", "--training.new_schedule"]]
)
def test_a_run_goes_on_with_its_schedule_or_a_new_one_that_is_asked_for(trainer, begun, flags):
    longer = trainer(begun, "--model.num_layers=3", *flags, result=GOOD)
    assert longer.progress.step == 40
    longer.run()
    rates = [line["learning_rate"] for line in metrics(begun)]
    assert len(rates) == 80 and (rates[40] == 1e-6) == ("--training.decay_steps=40" in flags)


def test_metrics_without_a_checkpoint_are_a_run_too(trainer, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(InputError, match="holds a run"):
        trainer(tmp_path, "--training.resume=false")
    assert metrics(tmp_path)


def test_a_run_that_began_with_other_weights_goes_on_with_the_same_command(trainer, begun, tmp_path):
    flags = ["--model.num_layers=3", f"--training.init_checkpoint={begun}"]
    for step, command in ((10, flags), (20, flags[:1]), (30, flags)):
        run = trainer(tmp_path / "tuned", *command)
        assert run.progress.step == step - 10
        run.checkpoints.save(Progress(step, step, LossScale(1.0)))


def test_damaged_checkpoints_are_not_begun_anew(trainer, begun):
    for file in begun.rglob("model.ckpt"):
        file.write_bytes(b"half")
    before = content(begun)
    with pytest.raises(InputError, match="every checkpoint in .* is damaged"):
        trainer(begun, "--model.num_layers=3")
    assert content(begun) == before


def test_a_second_process_is_kept_out_until_the_first_one_ends(trainer, tmp_path):
    code = (
        "import pathlib, time; from src.training.run_folder import RunLock; "
        f"lock = RunLock(pathlib.Path({str(tmp_path)!r})); print('locked', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"process {owner.pid} on .* trains into {re.escape(str(tmp_path))}: stop"):
            trainer(tmp_path)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    lock = RunLock(tmp_path)
    assert (tmp_path / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scale, limit, done", [(1.0, 1000, 20), (2.0**3, 1000, 23), (2.0**32, 5, 5)])
def test_overflow_without_end_stops_the_run(trainer, tmp_path, scale, limit, done):
    settings = dict(loss_scale=scale, max_skipped_steps=limit, save_interval=1, keep_checkpoints=1)
    run = trainer(tmp_path, result=OVERFLOW, **settings)
    with pytest.raises(InputError, match=f"training stopped after step {done}: the last {done} steps overflowed"):
        run.run()
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, done + 1))
    assert not (tmp_path / "checkpoint").exists()  # no weight has changed


def test_a_run_whose_every_step_overflowed_has_not_finished(trainer, tmp_path):
    run = trainer(tmp_path, result=OVERFLOW, steps=3, loss_scale=2.0**32)
    with pytest.raises(InputError, match="after step 3: the last 3 .*smaller --training.loss_scale"):
        run.run()
    assert trainer(tmp_path, steps=3).progress.loss_scale.value == 2.0**29


def test_overflow_now_and_then_is_no_reason_to_stop(trainer, tmp_path):
    run = trainer(tmp_path, loss_scale=1.0, steps=60)
    results = iter(([OVERFLOW] * 19 + [GOOD]) * 3)
    run.parts.stepper.train = lambda *_: next(results)
    run.run()
    assert run.progress.applied_steps == 3 and metrics(tmp_path)[-1]["skipped_steps"] == 57


def test_weights_that_are_not_finite_replace_no_checkpoint(trainer, tmp_path):
    run = trainer(tmp_path, keep_checkpoints=1)
    run.checkpoints.save(Progress(1, 1, LossScale(1.0)))
    parameter = run.parts.parameters[0]
    value = parameter.asnumpy().copy()
    value.flat[-1] = np.inf
    parameter.set_data(Tensor(value))
    with pytest.raises(InputError, match=rf"'{re.escape(parameter.name)}' is not finite after step 2.*step_00000001"):
        run.checkpoints.save(Progress(2, 2, LossScale(1.0)))
    assert os.listdir(tmp_path / "checkpoint") == ["step_00000001"]


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(trainer, tmp_path):
    """A limit on the size of files stands for the full disk: writing fails in the middle of a file."""
    run = trainer(tmp_path, keep_checkpoints=1)
    run.checkpoints.save(Progress(1, 1, LossScale(1.0)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(InputError, match="step_00000002 can't be written: File too large") as error:
            run.checkpoints.save(Progress(2, 2, LossScale(1.0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path / "checkpoint") == ["step_00000001"]
    assert trainer(tmp_path).progress.step == 1


def test_a_full_disk_while_metrics_are_written_is_one_line(trainer, tmp_path):
    run = trainer(tmp_path, result=GOOD, steps=400)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(InputError, match="File too large; training has stopped") as error:
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert trainer(tmp_path, steps=400).progress.step == 0
