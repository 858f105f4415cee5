"""What reports a run's metrics: the progress bar, metrics.jsonl, TensorBoard events and the loss curve."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Protocol

import matplotlib
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # ty: ignore[missing-module-member]
from tensorboardX.summary import scalar
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
        """Receive the metrics of an optimizer step.

        They are loss, learning_rate, grad_norm, loss_scale, overflow, skipped_steps and tokens_per_second.
        """

    def on_validation(self, metrics: Metrics) -> None:
        """Receive validation_loss and validation_perplexity."""

    def close(self) -> None:
        """Finish when the run ends or stops."""


class ProgressBar:
    """Shows loss, learning rate, tokens a second, overflow and the remaining time on the terminal."""

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
        skipped = metrics["skipped_steps"]
        overflow = f", overflow at loss scale {metrics['loss_scale']:g}" if metrics["overflow"] else ""
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, lr {metrics['learning_rate']:.2e}, "
            f"{metrics['tokens_per_second']:.0f} tokens/s{f', {skipped} skipped' if skipped else ''}{overflow}",
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
    """Writes every metric to metrics.jsonl, one JSON object a line. A number that is not finite becomes null.

    A resumed run drops the lines after its first step, and lines that are not metrics.
    """

    def __init__(self, folder: Path, first_step: int):
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(folder) if line["step"] <= first_step]
        write_text(path, "".join(map(_json_line, kept)))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def on_step(self, metrics: Metrics) -> None:
        """Append a line."""
        self._file.write(_json_line(metrics))

    on_validation = on_step

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Writes an event file into the folder `tensorboard`.

    It writes at once. The SummaryWriter of tensorboardX has a thread for that; on a full disk the thread ends, and its
    queue then blocks training for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        events = folder / "tensorboard"
        events.mkdir(parents=True, exist_ok=True)
        # File names have the time in whole seconds. The suffix keeps a run that resumes at once from overwriting one.
        self._writer = EventsWriter(str(events / "events"), f".{first_step}")
        if first_step:  # TensorBoard then forgets the steps from here on that an earlier file has
            self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def on_step(self, metrics: Metrics) -> None:
        """Add a scalar for each finite metric."""
        for name, value in metrics.items():
            if name != "step" and math.isfinite(value):
                self._write(Event(step=int(metrics["step"]), summary=scalar(name, value)))
        self._writer.flush()

    on_validation = on_step

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

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
    """Return the metrics in a run's metrics.jsonl, with NaN for null; an empty list if there is no file.

    A line that was cut off, or that is not a JSON object with a step, is skipped.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    *lines, _cut_off = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [metrics for metrics in map(_metrics_of, lines) if metrics is not None]


def _metrics_of(line: str) -> Metrics | None:
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("step"), int):
        return None
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _json_line(metrics: Metrics) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
