"""What a run tells: a progress bar, metrics as JSON lines, TensorBoard events, the loss curve."""

import json
import math
import sys
from pathlib import Path
from typing import Protocol

import matplotlib
from tensorboardX import SummaryWriter
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot  # the backend must be chosen first

Metrics = dict[str, float | int | bool]
METRICS_FILE = "metrics.jsonl"


class Callback(Protocol):
    """Is told of each logged step and each validation; `metrics` always holds "step", counted from 1."""

    def on_step(self, metrics: Metrics) -> None:
        """After an optimizer step: loss, learning_rate, grad_norm, loss_scale, overflow, tokens_per_second."""

    def on_validation(self, metrics: Metrics) -> None:
        """After a validation: validation_loss, validation_perplexity."""

    def close(self) -> None:
        """The run ends or stops."""


class ProgressBar:
    """Loss, learning rate, tokens a second and the time left, on the terminal."""

    def __init__(self, first_step: int, steps: int):
        self._bar = tqdm(
            initial=first_step,
            total=steps,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def on_step(self, metrics: Metrics) -> None:
        """Advance to the step."""
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, lr {metrics['learning_rate']:.2e}, "
            f"{metrics['tokens_per_second']:.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(metrics["step"] - self._bar.n)

    def on_validation(self, metrics: Metrics) -> None:
        """Print a line above the bar."""
        self._bar.write(
            f"step {metrics['step']}: validation loss {metrics['validation_loss']:.4f}, "
            f"perplexity {metrics['validation_perplexity']:.2f}",
            file=sys.stdout,
        )

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.close()


class MetricsFile:
    """Every metric, one JSON object a line, in metrics.jsonl. A resumed run cuts off what lies after its first step."""

    def __init__(self, folder: Path, first_step: int):
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)

    def on_step(self, metrics: Metrics) -> None:
        """Append a line."""
        self._file.write(json.dumps(metrics) + "\n")

    on_validation = on_step

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in the folder `tensorboard`."""

    def __init__(self, folder: Path, first_step: int):
        # The file's name has the time in whole seconds: the suffix keeps a run that goes on at once from overwriting.
        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=first_step + 1 if first_step else None,
            filename_suffix=f".{first_step}",
        )

    def on_step(self, metrics: Metrics) -> None:
        """Add a scalar for each metric; none where it isn't finite, of which the writer would warn on the terminal."""
        for name, value in metrics.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, value, metrics["step"])

    on_validation = on_step

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class LossCurve:
    """Draws loss_curve.png from metrics.jsonl when the run ends."""

    def __init__(self, folder: Path):
        self._folder = folder

    def on_step(self, metrics: Metrics) -> None:
        """Nothing: the file holds it."""

    on_validation = on_step

    def close(self) -> None:
        """Draw the curve."""
        lines = read_metrics(self._folder)
        figure, axes = pyplot.subplots(figsize=(8, 4.5))
        for key, label in (("loss", "training loss"), ("validation_loss", "validation loss")):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if key != "loss" else None, markersize=3)
        axes.set(xlabel="step", ylabel="loss (nats a token)")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        figure.tight_layout()
        figure.savefig(self._folder / "loss_curve.png", dpi=120)
        pyplot.close(figure)


def read_metrics(folder: Path) -> list[Metrics]:
    """The whole lines of a run's metrics.jsonl; empty where there is none."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
