"""Where a run starts, and what it saves so that it can resume."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from mindspore import Parameter

from src.checkpoint import store
from src.checkpoint.vocabulary import check_trained_with
from src.common.errors import InputError
from src.pangu_alpha_config import RunConfig, load_config
from src.parallel.build import TrainingParts
from src.training.progress import LossScale, Progress

FOLDER = "checkpoint"  # in the output folder of a run


class RunCheckpoints:
    """The checkpoints of a run.

    Args:
        config: Settings of the run.
        parts: What is saved and loaded.
        num_records: Records of the training data.
    """

    def __init__(self, config: RunConfig, parts: TrainingParts, num_records: int):
        self._config, self._parts, self._num_records = config, parts, num_records
        self._folder = Path(config.training.output) / FOLDER

    def start(self) -> Progress:
        """Load the newest whole checkpoint of the run; if there is none, the weights of `init_checkpoint` if given.

        Raises:
            InputError: The checkpoint is of other data or of settings that can't change within a run.
        """
        training, parts = self._config.training, self._parts
        checkpoint = store.newest(self._folder, parts.holder) if training.resume else None
        if checkpoint is None:
            if training.init_checkpoint:
                self._load(store.find(training.init_checkpoint, holder=parts.holder), parts.parameters)
            return Progress(0, 0, LossScale(training.loss_scale))
        state = store.read_state(checkpoint)
        changed = [
            f"{name} {state['order'][name]!r} -> {value!r}"
            for name, value in self._fixed_settings().items()
            if state["order"].get(name) != value
        ]
        if changed:
            raise InputError(
                f"{checkpoint} can't go on with other data or settings ({', '.join(changed)}); take the "
                "old ones, or begin anew with --training.init_checkpoint and another --training.output"
            )
        self._load(checkpoint, [*parts.parameters, *parts.optimizer.state])
        if parts.holder.rank == 0:
            print(f"going on from {checkpoint}", flush=True)
        return Progress(state["step"], state["applied_steps"], LossScale(**state["loss_scale"]))

    def save(self, progress: Progress) -> None:
        """Write a checkpoint of the current step. All ranks call it together."""
        state = {
            "applied_steps": progress.applied_steps,
            "loss_scale": asdict(progress.loss_scale),
            "order": self._fixed_settings(),
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

    def _load(self, source: Path, parameters: Iterable[Parameter]) -> None:
        self._check_vocabulary(source)
        store.load(source, parameters, self._parts.holder)
        self._parts.optimizer.refresh()

    def _check_vocabulary(self, source: Path) -> None:
        """Compare the vocabulary with the checkpoint's. If none is given, the checkpoint's md5 is kept.

        Raises:
            InputError: The checkpoint was trained with another vocabulary, and data.any_vocabulary is not set.
        """
        beside, data = store.config_beside(source), self._config.data
        trained = load_config(beside).data.vocabulary_md5 if beside else ""
        if not data.tokenizer_path:
            data.vocabulary_md5 = trained
        elif not data.any_vocabulary:
            check_trained_with(replace(data, vocabulary_md5=trained))

    def _fixed_settings(self) -> dict:
        """Return what must not change, so that data, dropout masks and moments continue where they were."""
        training = self._config.training
        return {
            "training.seed": training.seed,
            "sequences a micro-batch": training.batch_size * self._parts.holder.plan.data_ranks,
            "micro-batches": self._config.micro_steps,
            "training.optimizer": training.optimizer,
            "data.shuffle": self._config.data.shuffle,
            "records of data.train": self._num_records,
        }
