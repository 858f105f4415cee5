"""Whole runs of train.py as processes, and the trainer inside this process."""

import os
import shutil
import signal
import time

import numpy as np
import pytest

from src.common.cli import parse
from src.common.errors import InputError
from src.dataset import causal, eod_reset
from src.pangu_alpha_config import RunConfig
from src.training.trainer import Trainer
from tests.support import numpy_pangu
from tests.support.programs import (
    ROOT,
    TIMEOUT,
    TINY,
    finish,
    metrics,
    random_ids,
    run,
    start,
    train_flags,
    write_mindrecord,
)

STEPS = 20
TRAIN = ROOT / "train.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a file of 27 records: an epoch has 13 batches and leaves one record over."""
    file = tmp_path_factory.mktemp("data") / "train.mindrecord"
    write_mindrecord(file, random_ids(27))
    return file


def loss_lines(folder):
    return [
        (line["step"], line["loss"], line["learning_rate"], line["grad_norm"], line["loss_scale"])
        for line in metrics(folder)
        if "loss" in line
    ]


def wait_for_step(folder, step, process):
    """Wait until a run has logged a step."""
    file, ends = folder / "metrics.jsonl", time.monotonic() + TIMEOUT
    while time.monotonic() < ends and process.poll() is None:
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached: {process.communicate() if process.poll() is not None else 'too slow'}")


def train(data, output, **training):
    """Run to the end, and return stdout and stderr."""
    status, told, errors = run(TRAIN, *train_flags(data, output, **training))
    assert status == 0, errors
    return told, errors


# The loss scale overflows at first and doubles every few steps, so that more state must be resumed.
LIVELY = dict(steps=STEPS, accumulation_steps=2, optimizer="adamw", loss_scale=1e20, loss_scale_window=3)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Return the folder of a run without interruption."""
    output = tmp_path_factory.mktemp("straight")
    train(data, output, **LIVELY, save_interval=5)
    return output


def stop(data, output, number, after=10, **training):
    """Start a run, send it a signal after it has logged step `after`, and return (status, stdout, stderr)."""
    process = start(TRAIN, *train_flags(data, output, **training))
    wait_for_step(output, after, process)
    process.send_signal(number)
    return finish(process)


def test_stop_and_resume_give_the_losses_of_a_straight_run(data, straight, tmp_path):
    status, told, errors = stop(data, tmp_path, signal.SIGTERM, **LIVELY)
    last = metrics(tmp_path)[-1]["step"]
    assert status == 143 and 10 <= last < STEPS and "Traceback" not in errors
    assert f"stopped by SIGTERM after step {last}; the same command goes on from there" in told
    told, _ = train(data, tmp_path, **LIVELY)
    assert f"going on from {tmp_path}/checkpoint/step_{last:08d}" in told
    assert loss_lines(tmp_path) == loss_lines(straight)
    lines = metrics(straight)
    assert lines[0]["overflow"] and len({line["loss_scale"] for line in lines}) > 3
    assert (tmp_path / "loss_curve.png").stat().st_size > 1000


def test_ctrl_c_saves_too(data, tmp_path):
    status, told, errors = stop(data, tmp_path, signal.SIGINT, **LIVELY)
    last = metrics(tmp_path)[-1]["step"]
    assert status in (130, 143)  # during a computation, MindSpore turns Ctrl-C into SIGTERM
    assert f"after step {last}; the same command goes on" in told and "Traceback" not in errors
    assert os.listdir(tmp_path / "checkpoint") == [f"step_{last:08d}"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(data, straight, tmp_path):
    """The folder that kill -9 would leave in the middle of a write is made by hand."""
    status, *_ = stop(data, tmp_path, signal.SIGKILL, after=7, **LIVELY, save_interval=5)
    checkpoints = tmp_path / "checkpoint"
    assert status == -signal.SIGKILL
    shutil.copytree(checkpoints / "step_00000005", checkpoints / ".unfinished_10", dirs_exist_ok=True)
    (checkpoints / ".unfinished_10" / "model.ckpt").write_bytes(b"half")
    told, _ = train(data, tmp_path, **LIVELY, save_interval=5)
    assert "going on from" in told
    assert loss_lines(tmp_path) == loss_lines(straight)
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"step_{step:08d}" for step in (10, 15, 20)]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(data, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    model = tmp_path / "run" / "checkpoint" / "step_00000020" / "model.ckpt"
    model.write_bytes(model.read_bytes()[:1000])
    told, errors = train(data, tmp_path / "run", **LIVELY)
    assert "step_00000020 is damaged: model.ckpt was changed" in errors
    assert "going on from" in told and "step_00000015" in told
    assert loss_lines(tmp_path / "run") == loss_lines(straight)


@pytest.mark.slow
def test_200_steps_straight_or_stopped_at_100(data, tmp_path):
    settings = dict(steps=200, loss_scale_window=30)
    train(data, tmp_path / "straight", **settings)
    assert stop(data, tmp_path / "stopped", signal.SIGTERM, after=100, **settings)[0] == 143
    train(data, tmp_path / "stopped", **settings)
    assert len(loss_lines(tmp_path / "stopped")) == 200
    assert loss_lines(tmp_path / "stopped") == loss_lines(tmp_path / "straight")


# The tests below run in this process.


def test_a_run_whose_every_step_overflows_ends_in_one_line_and_keeps_its_checkpoint(data, tmp_path):
    """Gradients times 2^30 are finite in float32, and not in float16, with which the run goes on."""
    constant = dict(loss_scale=2.0**30, dynamic_loss_scale=False, max_skipped_steps=4, decay_steps=100)
    flags = train_flags(data, tmp_path, steps=2, **constant)
    assert run(TRAIN, *flags)[0] == 0
    flags = train_flags(data, tmp_path, steps=100, **constant)
    status, _, errors = run(TRAIN, *flags, "--model.compute_dtype=float16")
    assert status == 2 and errors.splitlines()[-1].startswith(
        "error: training stopped after step 6: the last 4 steps overflowed and did not update the weights (loss scale "
    )
    assert "Traceback" not in errors and os.listdir(tmp_path / "checkpoint") == ["step_00000002"]
    assert [line["overflow"] for line in metrics(tmp_path)] == [False] * 2 + [True] * 4
    assert run(TRAIN, *train_flags(data, tmp_path, steps=3, **constant))[0] == 0  # it is whole


def config(data, output, *flags, **training):
    return parse(RunConfig, "train.py", [*train_flags(data, output, **dict(steps=4) | training), *flags])


def steps(trainer, number):
    """Run some steps, and return their metrics."""
    batches = trainer.train_batches.iterate(trainer.progress.step * trainer.config.training.accumulation_steps)
    return [trainer._step(batches) for _ in range(number)]


def weights(trainer):
    return {p.name: p.asnumpy().copy() for p in trainer.parts.parameters}


def test_the_seed_decides_the_weights(data, tmp_path):
    one, same, other = (Trainer(config(data, tmp_path, seed=seed)) for seed in (1, 1, 2))
    name = "backbone.blocks.0.attention.dense1.weight"
    assert (weights(one)[name] == weights(same)[name]).all()
    assert (weights(one)[name] != weights(other)[name]).any()


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recompute_gives_the_same_losses(data, tmp_path, kind):
    settings = config(data, tmp_path)
    plain = steps(Trainer(settings), 3)
    settings.parallel.recompute = kind
    saving = steps(Trainer(settings), 3)
    np.testing.assert_allclose([line["loss"] for line in plain], [line["loss"] for line in saving], rtol=1e-6)


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(seed=1), "training.seed 0 -> 1"),
        (dict(batch_size=3), "sequences a micro-batch 2 -> 3"),
        (dict(optimizer="lamb"), "training.optimizer 'adamw' -> 'lamb'"),
    ],
)
def test_resuming_with_other_settings_is_refused(data, straight, changes, told):
    with pytest.raises(InputError, match=told) as error:
        Trainer(config(data, straight, **LIVELY | changes))
    assert "\n" not in str(error.value)


def test_resuming_with_other_data_is_refused(straight, tmp_path):
    file = tmp_path / "other.mindrecord"
    write_mindrecord(file, random_ids(5))
    with pytest.raises(InputError, match="records of data.train 27 -> 5"):
        Trainer(config(file, straight, **LIVELY))


def test_a_run_can_begin_with_the_weights_of_another(data, straight, tmp_path):
    trainer = Trainer(config(data, tmp_path, init_checkpoint=straight, steps=2))
    assert trainer.progress.step == 0
    begun = weights(trainer)
    resumed = weights(Trainer(config(data, straight, **LIVELY)))
    assert all((begun[name] == resumed[name]).all() for name in resumed)
    assert all((moment.asnumpy() == 0).all() for moment in trainer.parts.optimizer.state)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Return fine-tuning records: ids, loss_mask and their file."""
    ids, draw = random_ids(6, seed=3), np.random.default_rng(0)
    loss_mask = (draw.random((6, TINY.seq_length)) < 0.3).astype(np.int32)
    file = tmp_path_factory.mktemp("examples") / "examples.mindrecord"
    write_mindrecord(file, ids, loss_mask)
    return ids, loss_mask, file


def test_fine_tuning_loss_is_over_the_completions(examples, tmp_path):
    ids, loss_mask, file = examples
    trainer = Trainer(config(file, tmp_path, "--data.shuffle=false", "--model.dropout_rate=0"))
    model = trainer.config.model
    logits = numpy_pangu.logits(weights(trainer), model, ids[:2, :-1], *eod_reset(ids[:2], model.eod_token))
    expected = numpy_pangu.loss(logits, ids[:2], model.pad_token, loss_mask[:2])
    assert steps(trainer, 1)[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "flags, batches", [([], 3), (["--training.eval_batches=2"], 2), (["--model.eod_reset=false"], 3)]
)
def test_validation_perplexity_is_over_all_counted_tokens(examples, tmp_path, flags, batches):
    """Batches have different numbers of counted tokens, but each token weighs the same."""
    ids, loss_mask, file = examples
    trainer = Trainer(config(file, tmp_path, f"--data.validation={file}", *flags))
    model, ids = trainer.config.model, ids[: 2 * batches]
    inputs = eod_reset(ids, model.eod_token) if model.eod_reset else causal(ids)
    logits = numpy_pangu.logits(weights(trainer), model, ids[:, :-1], *inputs)
    expected = numpy_pangu.loss(logits, ids, model.pad_token, loss_mask[: len(ids)])
    measured = trainer.validate()
    assert measured["validation_loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["validation_perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)


def test_validation_and_logging_keep_their_intervals(data, tmp_path):
    trainer = Trainer(
        config(
            data,
            tmp_path,
            f"--data.validation={data}",
            steps=7,
            eval_interval=3,
            log_interval=2,
            eval_batches=1,
            save_interval=2,
            keep_checkpoints=2,
        )
    )
    trainer.run()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 7]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6, 7]
    assert sorted(os.listdir(tmp_path / "checkpoint")) == ["step_00000006", "step_00000007"]
    finished = Trainer(config(data, tmp_path, steps=7))
    finished.run()
    assert finished.progress.step == 7 and metrics(tmp_path) == lines


def test_a_tiny_model_learns_a_pattern(tmp_path):
    """The text counts up. The loss falls from log 50, that of a guess, to near 0."""
    file = tmp_path / "count.mindrecord"
    write_mindrecord(file, 10 + (np.arange(16)[:, None] * 3 + np.arange(TINY.seq_length + 1)) % 40)
    trainer = Trainer(config(file, tmp_path, "--model.dropout_rate=0", batch_size=8, steps=80, learning_rate=1e-2))
    losses = [line["loss"] for line in steps(trainer, 80)]
    assert losses[0] == pytest.approx(np.log(50), abs=0.1) and losses[-1] < 0.1
