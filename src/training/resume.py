"""Where a run starts, and what it saves so that it can resume."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from mindspore import Parameter

from src.checkpoint import store
from src.checkpoint.vocabulary import check_trained_with, with_records
from src.common.checks import require
from src.common.errors import InputError
from src.pangu_alpha_config import RunConfig, load_config
from src.parallel.build import TrainingParts
from src.training.progress import LossScale, Progress
from src.training.run_folder import CHECKPOINTS, check_run, fixed_settings, origin


class RunCheckpoints:
    """The checkpoints of a run.

    Args:
        config: Settings of the run.
        parts: What is saved and loaded.
        num_records: Records of the training data.
    """

    def __init__(self, config: RunConfig, parts: TrainingParts, num_records: int):
        self._config, self._parts = config, parts
        self._order = fixed_settings(config, num_records)
        self._folder = Path(config.training.output) / CHECKPOINTS
        self._origin = config.training.init_checkpoint
        self._saved_updates = 0

    def start(self) -> Progress:
        """Load the newest whole checkpoint of the run; if there is none, the weights of `init_checkpoint` if given.

        Raises:
            InputError: The checkpoint is of another run or of settings that can't change within a run, or every
                checkpoint of the run is damaged.
        """
        training, parts = self._config.training, self._parts
        checkpoint = store.newest(self._folder, parts.holder)
        if checkpoint is None:
            require(
                not store.checkpoints_of(self._folder),
                f"every checkpoint in {self._folder} is damaged: give another --training.output to begin anew",
            )
            if training.init_checkpoint:
                self._load(store.find(training.init_checkpoint, holder=parts.holder), parts.parameters)
            return Progress(0, 0, LossScale(training.loss_scale))
        check_run(self._config, checkpoint, self._order)
        state = store.read_state(checkpoint)
        self._origin, self._saved_updates = origin(checkpoint), state["applied_steps"]
        self._load(checkpoint, [*parts.parameters, *parts.optimizer.state])
        if parts.holder.rank == 0:
            print(f"going on from {checkpoint}", flush=True)
        return Progress(state["step"], state["applied_steps"], LossScale(**state["loss_scale"]))

    def has_news(self, progress: Progress) -> bool:
        """Whether the weights have changed since the newest checkpoint."""
        return progress.applied_steps > self._saved_updates

    def save(self, progress: Progress) -> None:
        """Write a checkpoint of the current step. All ranks call it together.

        Raises:
            InputError: A weight or moment is not finite, or a file can't be written. The older checkpoints stay.
        """
        self._check_finite(progress.step)
        state = {
            "applied_steps": progress.applied_steps,
            "loss_scale": asdict(progress.loss_scale),
            "order": self._order,
            "init_checkpoint": self._origin,
        }
        store.save(
            self._folder,
            progress.step,
            self._parts.parameters,
            self._parts.optimizer.state,
            state,
            self._config.save,
            self._config.training.keep_checkpoints,
            self._parts.holder,
        )
        self._saved_updates = progress.applied_steps

    def _check_finite(self, step: int) -> None:
        """Raise InputError if a weight or moment is not finite, so that it never replaces a good checkpoint."""
        held, holder = [*self._parts.parameters, *self._parts.optimizer.state], self._parts.holder
        broken = next((p.name for p in held if not np.isfinite(p.asnumpy()).all()), None)
        if not holder.all_true(broken is None):
            older = store.checkpoints_of(self._folder)
            raise InputError(
                f"{f'{broken!r} is' if broken else 'weights of another rank are'} not finite after step {step}, so no "
                f"checkpoint was written; the newest one is {older[-1] if older else 'none'}: train with a lower "
                "--training.learning_rate (and --training.new_schedule true to go on)"
            )

    def _load(self, source: Path, parameters: Iterable[Parameter]) -> None:
        self._check_vocabulary(source)
        store.load(source, parameters, self._parts.holder)
        self._parts.optimizer.refresh()

    def _check_vocabulary(self, source: Path) -> None:
        """Compare the vocabulary with the checkpoint's. If none is known, the checkpoint's md5 is kept.

        Raises:
            InputError: The checkpoint was trained with another vocabulary, and data.any_vocabulary is not set.
        """
        beside, data = store.config_beside(source), self._config.data
        trained = load_config(beside).data.vocabulary_md5 if beside else ""
        if not data.tokenizer_path:
            data.vocabulary_md5 = trained or data.vocabulary_md5
            with_records(data)
        elif not data.any_vocabulary:
            check_trained_with(replace(data, vocabulary_md5=trained))
