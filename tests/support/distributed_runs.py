"""Helpers for tests of several ranks: settings and data, launched programs, and the comparison of two runs."""

import math
import os
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

from src.checkpoint import store
from src.parallel.plan.plan import AXES
from tests.support.programs import ROOT, TINY, finish, metrics, random_ids, start, train_flags, write_mindrecord

TRAIN, PREDICT = ROOT / "train.py", ROOT / "predict.py"
TIMEOUT = 480  # seconds; eight ranks may have to compile their graphs on two cores
STEPS = 20
ROWS = 8  # sequences of an optimizer step under every plan
DENSE = {"num_layers": 3}
MOE = {"num_layers": 2, "num_experts": 4, "expert_interval": 1, "expert_top_k": 2}
# The loss scale overflows at first, and again after it has grown, because squares of gradients must stay below 3.4e38.
# So near to the limit, only some of the ranks overflow, or only the sum over them does. Norms are clipped.
TRAINING = {
    "steps": STEPS,
    "decay_steps": STEPS,
    "optimizer": "adamw",
    "clip_norm": 0.65,
    "loss_scale": 1e20,
    "loss_scale_window": 4,
    "eval_interval": 5,
    "save_interval": 10,
}


@dataclass(frozen=True)
class Run:
    """A run of train.py.

    Args:
        plan: Settings `parallel` that differ from a run of one rank.
        model, training: Settings that differ from TINY and TRAINING.
        micro_batches: Micro-batches of an optimizer step.
    """

    plan: dict = field(default_factory=dict)
    model: dict = field(default_factory=lambda: DENSE)
    training: dict = field(default_factory=dict)
    micro_batches: int = 2

    @property
    def ranks(self):
        return math.prod(self.plan.get(axis, 1) for axis in AXES)

    @property
    def steps(self):
        return (TRAINING | self.training)["steps"]

    @property
    def alone(self):
        """The run of one process that must give the same results."""
        return Run({}, self.model, self.training, self.micro_batches)

    def flags(self, data, output):
        data_ranks = self.plan.get("data", 1) * self.plan.get("expert", 1)
        training = TRAINING | {"batch_size": ROWS // self.micro_batches // data_ranks} | self.training
        groups = {"model": self.model, "parallel": {"micro_batch_num": self.micro_batches} | self.plan}
        return [
            *train_flags(data / "train.mindrecord", output, **training),
            f"--data.validation={data / 'validation.mindrecord'}",
            *(f"--{group}.{name}={value}" for group, values in groups.items() for name, value in values.items()),
        ]

    def start(self, data, output):
        """Start the run, or the launcher of its ranks. Their logs are in the output folder too."""
        output.mkdir(parents=True, exist_ok=True)
        command = [TRAIN, *self.flags(data, output)]
        return launch(self.ranks, *command, folder=output) if self.ranks > 1 else start(*command, cwd=output)

    def finish(self, data, output):
        """Run to the end, and return (exit status, stdout, stderr)."""
        return finish_all(self.start(data, output), output)


def launch(ranks, *command, folder, **settings):
    """Start the launcher of a program's ranks. They work in a folder and have their logs there."""
    return start("-m", "src.parallel.launch", f"--rank_size={ranks}", "--", *command, cwd=folder, **settings)


def finish_all(process, folder, timeout=TIMEOUT):
    """Return (exit status, stdout, stderr) of a process. Afterwards no process may run in the folder."""
    try:
        result = finish(process, timeout)
        assert not processes_of(folder)
        return result
    finally:
        for left in processes_of(folder):
            left.kill()


def processes_of(folder):
    """Return the processes that run in a folder."""
    return [
        process
        for process in psutil.process_iter(["cwd", "status"])
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def process_of(folder, rank):
    """Return the process number of a rank."""
    return next(
        process.pid
        for process in processes_of(folder)
        if process.environ().get("MS_NODE_ID") == str(rank) and process.environ()["MS_ROLE"] == "MS_WORKER"
    )


def log_of(folder, rank):
    """Return the log of a rank."""
    return (folder / f"device{rank}" / f"log{rank}.log").read_text()


def wait_for_step(output, step, process):
    """Wait until a run has logged a step."""
    file, deadline = output / "metrics.jsonl", time.monotonic() + TIMEOUT
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(output):
    """Return the last step that a run has logged."""
    return metrics(output)[-1]["step"]


def checkpoints(output):
    """Return the names in a run's folder of checkpoints."""
    return sorted(os.listdir(output / "checkpoint"))


def write_data(folder):
    """Write 27 records to train on, so that an epoch leaves some over, and 8 with a loss_mask for validation.

    Each record ends with a random number of pads, up to half of it, so that the ranks count different numbers of
    tokens.
    """
    draw = np.random.default_rng(0)
    for seed, (name, rows) in enumerate({"train": 27, "validation": 8}.items()):
        ids = random_ids(rows, seed=seed)
        for row, pads in zip(ids, draw.integers(0, TINY.seq_length // 2, rows), strict=True):
            row[len(row) - pads :] = TINY.pad_token
        loss_mask = draw.random((rows, TINY.seq_length)) < 0.7 if name == "validation" else None
        write_mindrecord(folder / f"{name}.mindrecord", ids, loss_mask)


def weights(output):
    """Return all whole parameters of a run's newest checkpoint by name, without moments."""
    slices = store.open_slices(store.newest(output / "checkpoint"))
    return {name: slices.read(name, slices.whole(name).box) for name in slices.names if not name.startswith("adam_")}


def differences(output, expected):
    """Return the largest relative differences of two runs' losses, gradient norms, validation losses and last weights.

    The runs must agree exactly in overflows, loss scale and learning rate. The norm of each parameter's difference is
    compared with the norm of the parameter. The bias of the keys is left out: it has no effect, so its gradient is only
    rounding, from which Adam makes whole steps.
    """
    found, wanted = (
        {("loss" in line, line["step"]): line for line in metrics(folder)} for folder in (output, expected)
    )
    assert found.keys() == wanted.keys()
    largest = {"loss": 0.0, "grad_norm": 0.0, "validation_loss": 0.0, "weights": 0.0}
    for key, line in wanted.items():
        assert all(
            found[key][name] == line[name] for name in ("overflow", "loss_scale", "learning_rate") if name in line
        ), key
        for name in line.keys() & largest.keys():
            if line[name] is not None:  # a number that is not finite
                largest[name] = max(largest[name], abs(found[key][name] - line[name]) / line[name])
    values, others = weights(output), weights(expected)
    assert values.keys() == others.keys()
    for name, other in others.items():
        if not name.endswith("attention.dense2.bias"):
            difference = np.linalg.norm(values[name] - other) / (np.linalg.norm(other) or 1.0)
            largest["weights"] = max(largest["weights"], float(difference))
    return largest
