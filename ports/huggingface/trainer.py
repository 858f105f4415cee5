"""The loop of `train`: optimizer steps, their reports, and the checkpoints from which a run goes on bit for bit."""

import argparse
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ports.huggingface import parallel
from ports.huggingface.records import IGNORED, Batches
from src.common.errors import InputError
from src.common.files import write_text
from src.training.stop_signal import SIGNAL_STATUS, StopSignal

KEPT = 2  # newest checkpoints
_STEP = "step_"


def learning_rate(arguments: argparse.Namespace, step: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, and half a cosine down to --min-lr."""
    end = arguments.lr_decay_iters or arguments.train_iters
    warmup = int(arguments.warmup * end)
    if step < warmup:
        return arguments.lr * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, end - warmup))
    return arguments.min_lr + (arguments.lr - arguments.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _optimizer(model: nn.Module, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    """Build AdamW. LayerNorms and biases do not decay."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (others if ".ln_" in name or name.endswith("bias") else decayed).append(parameter)
    groups = [
        {"params": group, "weight_decay": decay}
        for parameters, decay in ((decayed, arguments.weight_decay), (others, 0.0))
        for group in parallel.by_mesh(parameters)
    ]
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(groups, lr=arguments.lr, betas=betas, eps=arguments.adam_eps)


class Trainer:
    """Trains a model on numbered batches.

    Args:
        model: The model, in parts if there are several processes.
        batches: The data.
        arguments: The command line.
        device: This process's device.
        fixed: Settings that cannot change within a run.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        arguments: argparse.Namespace,
        device: torch.device,
        fixed: dict[str, Any],
    ) -> None:
        self._model, self._batches, self._arguments = model, batches, arguments
        self._device, self._fixed = device, fixed
        self._optimizer = _optimizer(model, arguments)
        self._trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._folder = Path(arguments.save)
        self._signal: StopSignal | None = None
        self.status = 0  # of the program, if a signal ends the run
        self._writer: SummaryWriter | None = None

    def run(self) -> bool:
        """Train until --train-iters, --exit-interval or a signal. Return whether the run is at its end.

        Raises:
            InputError: The run in --save has other settings, or the loss is no longer finite.
        """
        arguments, step = self._arguments, self._resume()
        self._signal = StopSignal()
        self._report_from(step)
        micro, data_ranks = arguments.accumulation, arguments.fsdp
        batches = self._batches.iterate(step * micro, parallel.rank() // arguments.tp, data_ranks)
        self._model.train()
        while step < arguments.train_iters:
            started = time.perf_counter()
            stop = self._step(step, [next(batches) for _ in range(micro)], started)
            step += 1
            leave = stop or (arguments.exit_interval and step % arguments.exit_interval == 0)
            if leave or step == arguments.train_iters or step % arguments.save_interval == 0:
                self._save(step)
            if leave and step < arguments.train_iters:
                self.status = SIGNAL_STATUS + (self._signal.number or signal.SIGTERM) if stop else 0
                break
        self._signal.restore()
        if self._writer:
            self._writer.close()
        return step >= arguments.train_iters

    def _step(self, step: int, batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]], started: float) -> bool:
        """Run an optimizer step over micro-batches. Each label that counts weighs the same. Return whether to stop."""
        arguments = self._arguments
        mine = sum(int((labels != IGNORED).sum()) for _, _, labels in batches)
        counted, stop = parallel.total([mine / arguments.tp, bool(self._signal and self._signal.number)], self._device)
        loss = 0.0
        for batch in batches:
            inputs, positions, labels = (torch.from_numpy(values).to(self._device) for values in batch)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=arguments.bf16):
                part = self._model(
                    input_ids=inputs,
                    position_ids=positions,
                    shift_labels=labels,
                    use_cache=False,
                    num_items_in_batch=max(counted, 1.0),
                ).loss
            (part * arguments.fsdp).backward()  # FSDP averages gradients, and they are to be added
            loss += part.item()
        if arguments.lora_rank and arguments.fsdp > 1:
            parallel.average_gradients(self._trained.values())
        [loss] = parallel.total([loss / arguments.tp], self._device)
        norm = parallel.clip(self._trained.values(), arguments.clip_grad)
        if not math.isfinite(loss + norm):
            raise InputError(
                f"the loss or the gradients are not finite in step {step + 1}: train with a lower --lr; the same "
                f"command goes on from the newest checkpoint in {self._folder}"
            )
        rate = learning_rate(arguments, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._report(step + 1, loss, norm, rate, counted / (time.perf_counter() - started))
        return stop > 0

    def _report_from(self, step: int) -> None:
        """Begin the reports after a step, and drop those of later steps that an ended run left."""
        if parallel.rank():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        write_text(file, "".join(f"{line}\n" for line in lines[:step]))  # there is a line for each step
        self._writer = SummaryWriter(str(self._folder / "tensorboard"), purge_step=step + 1 if step else None)

    def _report(self, step: int, loss: float, norm: float, rate: float, speed: float) -> None:
        if not self._writer:
            return
        values = {"loss": loss, "gradient_norm": norm, "learning_rate": rate, "tokens_per_second": speed}
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        if step % self._arguments.log_interval == 0 or step == self._arguments.train_iters:
            print(
                f"step {step}/{self._arguments.train_iters}: loss {loss:.6f}, gradient norm {norm:.4f}, "
                f"learning rate {rate:.3g}, {speed:,.0f} tokens/s",
                flush=True,
            )

    def _save(self, step: int) -> None:
        """Write a checkpoint. All processes call it together, and each writes its part."""
        state: dict[str, Any] = {
            "model": {name: parallel.local(value.detach()) for name, value in self._trained.items()},
            "optimizer": parallel.optimizer_state(self._optimizer),
            "random": torch.get_rng_state(),
        }
        if self._device.type != "cpu":
            state["device_random"] = torch.get_device_module(self._device).get_rng_state()

        def write(folder: Path) -> None:
            torch.save(state, folder / f"rank_{parallel.rank()}.pt")
            if parallel.rank() == 0:
                settings = {"step": step, "settings": self._fixed}
                (folder / "state.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

        parallel.write_folder(self._folder / "checkpoint" / f"{_STEP}{step}", write, by_all=True)
        if parallel.rank() == 0:
            for _, old in self._checkpoints()[:-KEPT]:
                shutil.rmtree(old)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = (self._folder / "checkpoint").glob(f"{_STEP}*")
        return sorted((int(path.name.removeprefix(_STEP)), path) for path in found)

    def _resume(self) -> int:
        """Load the newest checkpoint, if there is one, and return its step.

        Raises:
            InputError: It belongs to a run with other settings, or is damaged.
        """
        if not self._checkpoints():
            return 0
        step, folder = self._checkpoints()[-1]
        file = folder / f"rank_{parallel.rank()}.pt"
        try:
            settings = json.loads((folder / "state.json").read_text(encoding="utf-8"))["settings"]
            check_same(settings, self._fixed, folder)
            state = torch.load(file, map_location=self._device, weights_only=True)
            for name, value in self._trained.items():
                parallel.local(value.data).copy_(state["model"][name])
            parallel.restore_optimizer(self._optimizer, state["optimizer"])
            torch.set_rng_state(state["random"].cpu())
            if self._device.type != "cpu":
                torch.get_device_module(self._device).set_rng_state(state["device_random"].cpu())
        except InputError:
            raise
        except Exception as error:  # pickle and zip files raise many kinds
            told = f"delete it to go on from an older one ({type(error).__name__})"
            raise InputError(f"the checkpoint {folder} is damaged: {told}") from error
        if parallel.rank() == 0:
            print(f"going on from {folder}", flush=True)
        return step


def check_same(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Raise InputError if a run began with other settings."""
    for name, value in here.items():
        if there.get(name) != value:
            raise InputError(
                f"{folder} was trained with {name} {there.get(name)}, and not {value}: give the same, or another --save"
            )


def main_only(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that says something in process 0 alone."""
    return say if parallel.rank() == 0 else lambda _: None


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)
