"""What reports a run's metrics: the progress bar, metrics.jsonl, TensorBoard events and the loss curve."""

import json
import math
import sys
from pathlib import Path
from typing import Protocol

import matplotlib
from tensorboardX import SummaryWriter
from tqdm import tqdm

from src.common.files import write_text, written_whole

matplotlib.use("Agg")
from matplotlib import pyplot  # the backend must be chosen first

Metrics = dict[str, float | int | bool]
METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss_curve.png"


class Callback(Protocol):
    """Receives the metrics of each logged step and each validation. They always hold "step", counted from 1."""

    def on_step(self, metrics: Metrics) -> None:
        """Receive loss, learning_rate, grad_norm, loss_scale, overflow and tokens_per_second of an optimizer step."""

    def on_validation(self, metrics: Metrics) -> None:
        """Receive validation_loss and validation_perplexity."""

    def close(self) -> None:
        """Finish when the run ends or stops."""


class ProgressBar:
    """Shows loss, learning rate, tokens a second and the remaining time on the terminal."""

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
        """Advance the bar to the step."""
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
        """Leave the last state of the bar on the screen."""
        self._bar.close()


class MetricsFile:
    """Writes every metric to metrics.jsonl, one JSON object a line. A resumed run drops lines after its first step."""

    def __init__(self, folder: Path, first_step: int):
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def on_step(self, metrics: Metrics) -> None:
        """Append a line."""
        self._file.write(json.dumps(metrics) + "\n")

    on_validation = on_step

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Writes event files into the folder `tensorboard`."""

    def __init__(self, folder: Path, first_step: int):
        # File names have the time in whole seconds. The suffix keeps a run that resumes at once from overwriting one.
        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=first_step + 1 if first_step else None,
            filename_suffix=f".{first_step}",
        )

    def on_step(self, metrics: Metrics) -> None:
        """Add a scalar for each finite metric. The writer prints a warning for others, so they are left out."""
        for name, value in metrics.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, value, int(metrics["step"]))

    on_validation = on_step

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class LossCurve:
    """Draws loss_curve.png from metrics.jsonl when the run ends."""

    def __init__(self, folder: Path):
        self._folder = folder

    def on_step(self, metrics: Metrics) -> None:
        """Do nothing: metrics.jsonl holds the values."""

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
        with written_whole(self._folder / CURVE_FILE) as temporary:
            figure.savefig(temporary, dpi=120)
        pyplot.close(figure)


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the whole lines of a run's metrics.jsonl; an empty list if there is no file."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
