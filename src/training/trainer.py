"""The training loop: steps, validation, checkpoints and metrics at their intervals, and an end at a stop signal."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from src.checkpoint.vocabulary import noted, with_records
from src.common.checks import require
from src.common.errors import InputError
from src.dataset import Batch, TokenBatches
from src.nn.dropout import dropout_keys
from src.nn.optimizer import StepScalars
from src.pangu_alpha_config import RunConfig
from src.pangu_alpha_wrapcell import Inputs, counted_tokens
from src.parallel.build import build_training
from src.parallel.mesh import connect
from src.parallel.plan.costs import rank_memory
from src.parallel.plan.plan import AXES, Plan
from src.training.callbacks import Callback, LossCurve, MetricsFile, ProgressBar, TensorBoard
from src.training.document_ends import warn_of_other_ends
from src.training.resume import RunCheckpoints
from src.training.run_folder import RunLock, check_folder, fixed_settings
from src.training.stop_signal import SIGNAL_STATUS, StopSignal


class Trainer:
    """A training run, from its settings to its last checkpoint.

    Raises:
        InputError: The data or a checkpoint does not fit the settings.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        training, data = config.training, config.data
        self.output = Path(training.output)
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"training.output {self.output} is a file; give a folder")
        config.data = data = noted(data)
        if not data.train:
            raise InputError("data.train is not given: a folder of MindRecord files from `python -m src.preprocess`")
        config.data = data = with_records(data)
        self.mesh = connect(Plan.of(config.parallel, config.model))
        self.train_batches = self._batches(data.train, shuffle=data.shuffle)
        pad = config.model.pad_token
        self.validation_batches = (
            self._batches(data.validation, shuffle=False, fill_token=pad) if data.validation else None
        )
        if training.eval_interval and self.validation_batches is None:
            raise InputError("training.eval_interval is set but data.validation is not")
        if self.mesh.rank == 0:
            warn_of_other_ends(self.train_batches, config)
        num_records = self.train_batches.num_records
        self._lock = RunLock(self.output) if self.mesh.rank == 0 else None
        check_folder(config, fixed_settings(config, num_records))  # before the engine writes its strategy files
        self._require_memory()
        self.parts = build_training(config, self.mesh)
        self.checkpoints = RunCheckpoints(config, self.parts, num_records)
        self.progress = self.checkpoints.start()
        data.any_vocabulary = False  # from here on, the run's own vocabulary is the right one
        self.stopped_by = 0

    def _require_memory(self) -> None:
        memory = rank_memory(self.config, self.mesh.rank)
        self.mesh.require_memory(
            f"training a model of {self.config.model.num_parameters / 1e6:,.1f}M parameters",
            memory.total + (memory.moments if memory.moments_on_host else 0),
            "--plan says what each rank needs; take a smaller training.batch_size or model, or more machines",
        )

    def _batches(self, path: str, **order: Any) -> TokenBatches:
        model, training, data = self.config.model, self.config.training, self.config.data
        return TokenBatches(
            path,
            data.column,
            training.batch_size,
            model.seq_length,
            model.vocab_size,
            seed=training.seed,
            rank=self.mesh.plan.data_rank(self.mesh.rank),
            rank_size=self.mesh.plan.data_ranks,
            **order,
        )

    def run(self) -> None:
        """Train to the last step.

        Exits:
            After SIGTERM or Ctrl-C: write a checkpoint, and exit with status 143 or 130.

        Raises:
            InputError: Steps overflow without end, weights are not finite, or a file can't be written.
        """
        first, updates = self.progress.step, self.progress.applied_steps
        self._tell(self._summary())
        try:
            with ExitStack() as closing:
                if self._lock:
                    closing.callback(self._lock.release)
                callbacks = self._callbacks() if self.mesh.rank == 0 else []
                for callback in callbacks:
                    closing.callback(callback.close)
                stop = StopSignal()
                closing.callback(stop.restore)
                self._loop(callbacks, stop)
                stuck = self.progress.is_stuck(self.config.training)
                if self.progress.step > first and (self.checkpoints.has_news(self.progress) or not stuck):
                    self.checkpoints.save(self.progress)
        except OSError as error:
            raise InputError(
                f"{error.filename or self.output}: {error.strerror}; training has stopped, and the same command goes "
                "on from the newest checkpoint, which is whole"
            ) from error
        self._check_updates(first, updates)
        if self.stopped_by:
            self._tell(
                f"stopped by {signal.Signals(self.stopped_by).name} after step {self.progress.step}; the same "
                "command goes on from there"
            )
            sys.exit(SIGNAL_STATUS + self.stopped_by)
        self._tell(
            f"finished step {self.progress.step}: checkpoint, metrics.jsonl and loss_curve.png are in {self.output}"
        )

    def _callbacks(self) -> list[Callback]:
        first = self.progress.step
        return [
            MetricsFile(self.output, first),
            TensorBoard(self.output, first),
            LossCurve(self.output),
            ProgressBar(first, self.config.training.steps),
        ]

    def _check_updates(self, first: int, updates: int) -> None:
        """Raise InputError if overflow, or a loss that is not finite, kept the run from training.

        Args:
            first: Steps that were done when the run began.
            updates: Those of them that had updated the weights.
        """
        progress, training = self.progress, self.config.training
        stuck = progress.is_stuck(training)
        none = progress.step == training.steps > first and progress.applied_steps == updates
        require(
            not stuck and not none,
            f"training stopped after step {progress.step}: the last {progress.skipped_in_row} steps overflowed and did "
            f"not update the weights (loss scale {progress.loss_scale.value:g}); "
            + (
                "the loss is not finite, or gradients are too large: look at the data and the initial weights, or try "
                "a lower --training.learning_rate in another --training.output"
                if progress.loss_scale.value <= 1
                else "begin with a smaller --training.loss_scale in another --training.output, or take more steps"
            ),
        )

    def _tell(self, line: str) -> None:
        if self.mesh.rank == 0:
            print(line, flush=True)

    def _summary(self) -> str:
        batches, parallel = self.train_batches, self.config.parallel
        ranks = f" x {parallel.world_size} ranks" if parallel.world_size > 1 else ""
        products = f", products in {'bfloat16' if self.parts.in_half else 'float32'}"
        return (
            f"{self.config.model.num_parameters / 1e6:.1f}M parameters on {parallel.device_target}{ranks}"
            f"{products if self.config.has_half_products else ''}; "
            f"{batches.num_records} records, {batches.batches_per_epoch} batches an epoch "
            f"({batches.dropped_per_epoch} records left over); {self.config.training.steps} steps of "
            f"{self._tokens(1)} tokens"
        )

    def _loop(self, callbacks: list[Callback], stop: StopSignal) -> None:
        training, progress = self.config.training, self.progress
        batches = self.train_batches.iterate(progress.step * self.config.micro_steps)
        began, logged = time.perf_counter(), progress.step
        while progress.step < training.steps and not self.stopped_by and not progress.is_stuck(training):
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
            due = training.save_interval and progress.step % training.save_interval == 0 and not last
            if due and self.checkpoints.has_news(progress):
                self.checkpoints.save(progress)

    def _tokens(self, steps: int) -> int:
        sequences = self.config.training.batch_size * self.mesh.plan.data_ranks * self.config.micro_steps
        return steps * sequences * self.config.model.seq_length

    def _step(self, batches: Iterator[Batch], signal_number: int = 0) -> dict:
        """Run one optimizer step and return its metrics.

        Every rank gets `stopped_by` from an all-reduce: all stop if one of them has received a signal.
        """
        training, progress = self.config.training, self.progress
        scalars = StepScalars.at(training, progress.step, progress.applied_steps)
        micro_batches = (self._inputs(next(batches), micro_step) for micro_step in range(self.config.micro_steps))
        result = self.parts.stepper.train(progress.loss_scale.value, scalars, micro_batches)
        loss, stopping = self.mesh.total(np.array([result.loss / self.mesh.plan.tensor, signal_number]), *AXES)
        self.stopped_by = signal_number or (signal.SIGTERM if stopping else 0)
        metrics = {
            "step": progress.step + 1,
            "loss": float(loss),
            "learning_rate": scalars.learning_rate,
            "grad_norm": result.gradient_norm,
            "loss_scale": progress.loss_scale.value,
            "overflow": not result.finite,
            "skipped_steps": progress.step + 1 - progress.applied_steps - result.finite,
        }
        progress.update(result.finite, training)
        return metrics

    def _inputs(self, batch: Batch, micro_step: int | None) -> Inputs:
        """Return what PanguAlphaWithLoss takes. `micro_step` gives a training batch its dropout keys; else None."""
        keys = None
        if micro_step is not None and self.config.model.has_dropout:
            plan, rows = self.mesh.plan, len(batch.ids)
            first = plan.data_rank(self.mesh.rank) * rows
            keys = dropout_keys(self.config.training.seed, self.progress.step, micro_step, rows * plan.data_ranks)
            keys = Tensor(keys[first : first + rows])
        return *batch.tensors(self.config), keys

    def validate(self) -> dict[str, float]:
        """Return the mean loss and the perplexity of the validation batches. Each counted token weighs the same."""
        if self.validation_batches is None:
            raise ValueError("training.eval_interval is 0: the trainer has read no validation data")
        shares, tokens = [], []
        for batch in self.validation_batches.once(self.config.training.eval_batches):
            counted = counted_tokens(batch.ids, batch.loss_mask, self.config.model.pad_token)
            tokens.append(counted if self.mesh.at.pipeline == 0 else 0.0)
            shares.append(self.parts.stepper.evaluate(self._inputs(batch, None)))
        losses, tokens = self.mesh.total(np.array([shares, tokens]) / self.mesh.plan.tensor, *AXES).astype(np.float64)
        loss = float((losses * tokens).sum() / max(tokens.sum(), 1.0))
        return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
