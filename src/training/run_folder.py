"""A folder belongs to one run. This file checks that a command goes on with that run, and keeps other processes out."""

import errno
import fcntl
import os
import socket
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

from src.checkpoint import store
from src.common.checks import require
from src.common.errors import InputError
from src.common.reading import read_yaml
from src.nn.optimizer import learning_rate
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.plan import Plan

CHECKPOINTS = "checkpoint"  # in the output folder of a run
LOCK_FILE = "run.lock"
SCHEDULE = ("learning_rate", "end_learning_rate", "warmup_steps", "decay_steps")
# Settings of the model without which its weights mean something else. The others may change within a run.
NETWORK = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "seq_length",
    "ffn_hidden_size",
    "hidden_act",
    "layernorm_epsilon",
    "num_experts",
    "expert_interval",
    "expert_top_k",
)


class RunLock:
    """Locks a run's folder, until `release` or the end of the process. The file in it names the process.

    The operating system drops the lock with the process, so a process that was killed leaves no lock behind.

    Raises:
        InputError: Another process trains into the folder.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK_FILE
        while True:
            file = path.open("a+")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    owner = file.read().strip() or "another process"
                    file.close()
                    raise InputError(
                        f"{owner} trains into {folder}: stop it or wait for its end, or give another --training.output"
                    ) from error
                # Some network file systems have no locks; then the run goes on without one.
            if _is_at(file, path):
                break
            file.close()  # the other run has ended in between, and has removed its file
        self._release = weakref.finalize(self, _unlock, file, path)
        try:
            os.truncate(path, 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            self.release()
            raise OSError(error.errno, error.strerror, str(folder)) from error

    def release(self) -> None:
        """Remove the file and drop the lock."""
        self._release()


def _is_at(file: IO, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unlock(file: IO, path: Path) -> None:
    if _is_at(file, path):
        path.unlink()
    file.close()


def fixed_settings(config: RunConfig, num_records: int) -> dict[str, object]:
    """Return what can't change within a run, so that data, dropout masks and moments continue where they were.

    Args:
        config: Settings of the run.
        num_records: Records of the training data.
    """
    training, plan = config.training, Plan.of(config.parallel, config.model)
    return {
        "training.seed": training.seed,
        "sequences a micro-batch": training.batch_size * plan.data_ranks,
        "micro-batches": config.micro_steps,
        "training.optimizer": training.optimizer,
        "data.shuffle": config.data.shuffle,
        "records of data.train": num_records,
    }


def check_folder(config: RunConfig, order: Mapping[str, object]) -> None:
    """Check, before anything is written, that the output folder is free or holds the run that this command continues.

    Args:
        config: Settings of the command.
        order: What `fixed_settings` returns.

    Raises:
        InputError: The folder holds another run, or the command would begin a second one in it.
    """
    training = config.training
    folder = Path(training.output)
    checkpoints = store.checkpoints_of(folder / CHECKPOINTS)
    if not training.resume:
        begun = [*checkpoints, *folder.glob("metrics.jsonl")]
        require(
            not begun,
            f"{folder} holds a run ({begun[-1].name if begun else ''}), and training.resume false begins another one: "
            "give another --training.output, or go on with --training.resume true",
        )
    for checkpoint in reversed(checkpoints):
        try:
            store.read_state(checkpoint)
        except (OSError, ValueError):
            continue  # a damaged one; its run goes on from the one before
        check_run(config, checkpoint, order)
        return


def check_run(config: RunConfig, checkpoint: Path, order: Mapping[str, object]) -> None:
    """Check that a command continues the run of a checkpoint.

    Args:
        config: Settings of the command.
        checkpoint: Checkpoint of the run in the command's output folder.
        order: What `fixed_settings` returns.

    Raises:
        InputError: The network, the beginning, the data or the schedule is not that of the run.
    """
    state, saved = store.read_state(checkpoint), _saved_settings(checkpoint)
    changed = _changes(saved.get("model", {}), vars(config.model), NETWORK, "model.")
    require(
        not changed,
        f"{checkpoint} is of another network ({', '.join(changed)}): give another --training.output, or the run's own "
        "settings to go on with it",
    )
    given, begun = config.training.init_checkpoint, origin(checkpoint)
    require(
        not given or os.path.abspath(given) == os.path.abspath(begun or os.devnull),
        f"{config.training.output} holds a run that began with {begun or 'random weights'}, so "
        f"training.init_checkpoint {given} would not be used: give another --training.output, or leave it out to go on "
        "with the run",
    )
    changed = _changes(state["order"], order, tuple(order))
    require(
        not changed,
        f"{checkpoint} can't go on with other data or settings ({', '.join(changed)}); take the old ones, or begin "
        "anew with --training.init_checkpoint and another --training.output",
    )
    if not config.training.new_schedule:
        _check_schedule(config, checkpoint, state["step"], saved.get("training", {}))


def origin(checkpoint: Path) -> str:
    """Return the init_checkpoint with which the run of a checkpoint began; empty for random weights."""
    begun = store.read_state(checkpoint).get("init_checkpoint")
    return _saved_settings(checkpoint).get("training", {}).get("init_checkpoint", "") if begun is None else begun


def _check_schedule(config: RunConfig, checkpoint: Path, step: int, saved: Mapping) -> None:
    now = config.training
    changed = _changes(saved, vars(now), SCHEDULE, "training.")
    if not changed:
        return
    before = replace(now, **{name: saved[name] for name in SCHEDULE if name in saved})
    keep = " ".join(
        f"--training.{name} {getattr(before, name)}" for name in SCHEDULE if getattr(before, name) != getattr(now, name)
    )
    raise InputError(
        f"{checkpoint} has another learning rate schedule ({', '.join(changed)}): the learning rate of step {step + 1} "
        f"would be {learning_rate(now, step):.3g} instead of {learning_rate(before, step):.3g}; give {keep} to keep "
        "the schedule, or --training.new_schedule true to change it"
    )


def _changes(saved: Mapping, now: Mapping, names: tuple[str, ...], prefix: str = "") -> list[str]:
    """Name the settings that differ. One that an older version has not saved is taken as equal."""
    differing = (name for name in names if name in saved and saved[name] != now[name])
    return [f"{prefix}{name} {saved[name]!r} -> {now[name]!r}" for name in differing]


def _saved_settings(checkpoint: Path) -> dict:
    """Return the groups of settings beside a checkpoint, as they were saved, whichever version has saved them."""
    path = store.config_beside(checkpoint)
    try:
        return read_yaml(path) if path else {}
    except InputError:
        return {}
