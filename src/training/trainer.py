"""The training loop: data, steps, loss scale, validation, checkpoints, stopping and going on."""

import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor

from src.checkpoint import store
from src.common.errors import InputError
from src.common.settings import TrainingConfig
from src.dataset import Batch, TokenBatches, causal, eod_reset
from src.nn.dropout import dropout_keys
from src.nn.optimizer import StepScalars
from src.pangu_alpha_config import RunConfig
from src.parallel.build import build_training
from src.parallel.explicit.data_parallel import ShardedOptimizer
from src.parallel.mesh import connect
from src.parallel.plan.plan import AXES, Plan
from src.training.callbacks import Callback, LossCurve, MetricsFile, ProgressBar, TensorBoard

SIGNAL_STATUS = 128  # a shell's exit status for a process that a signal ended, less the signal's number


@dataclass
class LossScale:
    """The loss scale that grows while gradients stay finite and shrinks when they don't.

    Args:
        value: The scale.
        clean_steps: Steps without overflow since it last changed.
    """

    value: float
    clean_steps: int = 0

    def update(self, finite: bool, config: TrainingConfig) -> None:
        """Take note of a step."""
        if not config.dynamic_loss_scale:
            return
        if not finite:
            self.value, self.clean_steps = max(1.0, self.value / 2), 0
        elif self.clean_steps + 1 == config.loss_scale_window:
            self.value, self.clean_steps = self.value * 2, 0
        else:
            self.clean_steps += 1


@dataclass
class Progress:
    """How far a run is; with the weights and moments, all that it needs to go on.

    Args:
        step: Optimizer steps done.
        applied_steps: Those of them that were not skipped by overflow.
        loss_scale: The scale and its counter.
    """

    step: int
    applied_steps: int
    loss_scale: LossScale


class StopSignal:
    """Notes the first SIGTERM or Ctrl-C, so that the loop can save; a second one acts at once."""

    def __init__(self):
        self.number = 0
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        self.restore()

    def restore(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Trainer:
    """One run, from its settings to its last checkpoint.

    Raises:
        InputError: While it is made: data or checkpoints that don't fit.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        training, data = config.training, config.data
        self.output = Path(training.output)
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"training.output {self.output} is a file; give a folder")
        self.checkpoints = self.output / "checkpoint"
        if not data.train:
            raise InputError("data.train is not given: a folder of MindRecord files from `python -m src.preprocess`")
        self.mesh = connect(Plan.of(config.parallel, config.model))
        self.train_batches = self._batches(data.train, data.shuffle)
        self.validation_batches = self._batches(data.validation, shuffle=False) if data.validation else None
        if training.eval_interval and self.validation_batches is None:
            raise InputError("training.eval_interval is set but data.validation is not")
        parts = build_training(config, self.mesh)
        self.parameters, self.stepper = parts.parameters, parts.stepper
        self.optimizer, self.holder = parts.optimizer, parts.holder
        self.progress = self._start()
        self.stopped_by = 0

    def _batches(self, path: str, shuffle: bool) -> TokenBatches:
        model, training, data = self.config.model, self.config.training, self.config.data
        return TokenBatches(
            path,
            data.column,
            training.batch_size,
            model.seq_length,
            model.vocab_size,
            seed=training.seed,
            shuffle=shuffle,
            rank=self.mesh.plan.data_rank(self.mesh.rank),
            rank_size=self.mesh.plan.data_ranks,
        )

    def _start(self) -> Progress:
        """Go on from the newest checkpoint, or begin: anew or from `init_checkpoint`."""
        training = self.config.training
        checkpoint = store.newest(self.checkpoints, self.holder) if training.resume else None
        if checkpoint is None:
            if training.init_checkpoint:
                self._load(store.find(training.init_checkpoint, holder=self.holder), self.parameters)
            return Progress(0, 0, LossScale(training.loss_scale))
        state = store.read_state(checkpoint)
        changed = [
            f"{name} {state['order'][name]!r} -> {value!r}"
            for name, value in self._data_order().items()
            if state["order"].get(name) != value
        ]
        if changed:
            raise InputError(
                f"{checkpoint} can't go on with other data or settings ({', '.join(changed)}); take the "
                "old ones, or begin anew with --training.init_checkpoint and another --training.output"
            )
        self._load(checkpoint, [*self.parameters, *self.optimizer.state])
        self._tell(f"going on from {checkpoint}")
        return Progress(state["step"], state["applied_steps"], LossScale(**state["loss_scale"]))

    def _load(self, source: Path, parameters: Iterable[Parameter]) -> None:
        store.load(source, parameters, self.holder)
        if isinstance(self.optimizer, ShardedOptimizer):
            self.optimizer.refresh()

    def _data_order(self) -> dict:
        """What must stay the same for the data, the masks and the moments to go on where they were."""
        training, data = self.config.training, self.config.data
        sequences = training.batch_size * self.mesh.plan.data_ranks
        return {
            "training.seed": training.seed,
            "sequences a micro-batch": sequences,
            "micro-batches": self.config.micro_steps,
            "training.optimizer": training.optimizer,
            "data.shuffle": data.shuffle,
            "records of data.train": self.train_batches.num_records,
        }

    def run(self) -> None:
        """Train to the last step.

        Exits:
            With 143 or 130 after SIGTERM or Ctrl-C, once the checkpoint is written.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        first = self.progress.step
        self._tell(self._summary())
        callbacks = []
        if self.mesh.rank == 0:
            callbacks = [
                MetricsFile(self.output, first),
                TensorBoard(self.output, first),
                LossCurve(self.output),
                ProgressBar(first, self.config.training.steps),
            ]
        stop = StopSignal()
        try:
            self._loop(callbacks, stop)
            if self.progress.step > first:
                self._save()
        finally:
            stop.restore()
            for callback in callbacks:
                callback.close()
        if self.stopped_by:
            self._tell(
                f"stopped by {signal.Signals(self.stopped_by).name} after step {self.progress.step}; the same "
                "command goes on from there"
            )
            sys.exit(SIGNAL_STATUS + self.stopped_by)
        self._tell(
            f"finished step {self.progress.step}: checkpoint, metrics.jsonl and loss_curve.png are in {self.output}"
        )

    def _tell(self, line: str) -> None:
        if self.mesh.rank == 0:
            print(line, flush=True)

    def _summary(self) -> str:
        batches, parallel = self.train_batches, self.config.parallel
        ranks = f" x {parallel.world_size} ranks" if parallel.world_size > 1 else ""
        return (
            f"{self.config.model.num_parameters / 1e6:.1f}M parameters on {parallel.device_target}{ranks}; "
            f"{batches.num_records} records, {batches.batches_per_epoch} batches an epoch "
            f"({batches.dropped_per_epoch} records left over); {self.config.training.steps} steps of "
            f"{self._tokens(1)} tokens"
        )

    def _loop(self, callbacks: list[Callback], stop: StopSignal) -> None:
        training, progress = self.config.training, self.progress
        batches = self.train_batches.iterate(progress.step * self.config.micro_steps)
        began, logged = time.perf_counter(), progress.step
        while progress.step < training.steps and not self.stopped_by:
            metrics = self._step(batches, stop.number)
            if progress.step % training.log_interval == 0 or progress.step == training.steps:
                now = time.perf_counter()
                metrics["tokens_per_second"] = round(self._tokens(progress.step - logged) / (now - began), 1)
                began, logged = now, progress.step
                for callback in callbacks:
                    callback.on_step(metrics)
            last = progress.step == training.steps
            if training.eval_interval and (progress.step % training.eval_interval == 0 or last):
                validation = {"step": progress.step} | self.validate()
                for callback in callbacks:
                    callback.on_validation(validation)
                began, logged = time.perf_counter(), progress.step
            if training.save_interval and progress.step % training.save_interval == 0 and not last:
                self._save()

    def _tokens(self, steps: int) -> int:
        sequences = self.config.training.batch_size * self.mesh.plan.data_ranks * self.config.micro_steps
        return steps * sequences * self.config.model.seq_length

    def _step(self, batches: Iterator[Batch], signal_number: int = 0) -> dict:
        """One optimizer step; its metrics. Afterwards all ranks know whether one of them was told to stop."""
        training, progress = self.config.training, self.progress
        scalars = StepScalars.at(training, progress.step, progress.applied_steps)
        micro_batches = (self._inputs(next(batches), micro_step) for micro_step in range(self.config.micro_steps))
        result = self.stepper.train(progress.loss_scale.value, scalars, micro_batches)
        loss, stopping = self.mesh.total(np.array([result.loss / self.mesh.plan.tensor, signal_number]), *AXES)
        self.stopped_by = signal_number or (signal.SIGTERM if stopping else 0)
        metrics = {
            "step": progress.step + 1,
            "loss": float(loss),
            "learning_rate": scalars.learning_rate,
            "grad_norm": result.gradient_norm,
            "loss_scale": progress.loss_scale.value,
            "overflow": not result.finite,
        }
        progress.step += 1
        progress.applied_steps += result.finite
        progress.loss_scale.update(result.finite, training)
        return metrics

    def _inputs(self, batch: Batch, micro_step: int | None) -> tuple[Tensor | None, ...]:
        """A batch as PanguAlphaWithLoss takes it; with dropout keys where it is one of training."""
        model, plan, rows = self.config.model, self.mesh.plan, len(batch.ids)
        position_ids, attention_mask = eod_reset(batch.ids, model.eod_token) if model.eod_reset else causal(batch.ids)
        loss_mask = None if batch.loss_mask is None else Tensor(batch.loss_mask)
        keys = None
        if micro_step is not None and model.dropout_rate > 0:
            mine = plan.data_rank(self.mesh.rank) * rows
            keys = dropout_keys(self.config.training.seed, self.progress.step, micro_step, rows * plan.data_ranks)
            keys = Tensor(keys[mine : mine + rows])
        return Tensor(batch.ids), Tensor(position_ids), Tensor(attention_mask), loss_mask, keys

    def validate(self) -> dict[str, float]:
        """Mean loss and perplexity over the counted tokens of the validation batches."""
        shares, tokens = [], []
        for batch in self.validation_batches.once(self.config.training.eval_batches):
            counted = batch.ids[:, :-1] != self.config.model.pad_token
            if batch.loss_mask is not None:
                counted = counted * batch.loss_mask
            tokens.append(counted.sum() if self.mesh.at.pipeline == 0 else 0)
            shares.append(self.stepper.evaluate(self._inputs(batch, None)))
        losses, tokens = self.mesh.total(np.array([shares, tokens]) / self.mesh.plan.tensor, *AXES).astype(np.float64)
        loss = float((losses * tokens).sum() / max(tokens.sum(), 1.0))
        return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}

    def _save(self) -> None:
        progress = self.progress
        state = {
            "applied_steps": progress.applied_steps,
            "loss_scale": asdict(progress.loss_scale),
            "order": self._data_order(),
        }
        store.save(
            self.checkpoints,
            progress.step,
            self.parameters,
            self.optimizer.state,
            state,
            self.config.save,
            self.config.training.keep_checkpoints,
            self.holder,
        )
