"""Report of an evaluation: scores with their 95% intervals beside published ones."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.common.files import write_text
from src.common.tables import table
from src.evaluation.intervals import bootstrap, wilson
from src.evaluation.predictions import RESULT_FILE
from src.evaluation.tasks.task import FOLDED, Task

COUNTED = ("top1_acc", "em")  # an example has 0 or 1
SETTINGS = ("zero-shot", "one-shot", "few-shot")


@dataclass(frozen=True)
class Figure:
    """A score.

    Args:
        metric: Name of the metric.
        value: A share (0 to 1) or a perplexity.
        low, high: Ends of the 95% interval.
        interval: Method of the interval: Wilson or bootstrap.
        reported: Published score of the 2.6B model, as a share; None if there is none.
    """

    metric: str
    value: float
    low: float
    high: float
    interval: str
    reported: float | None = None


def figure(metric: str, records: Sequence[dict[str, Any]], reported: float | None = None) -> Figure:
    """Compute the score of finished examples.

    Args:
        metric: Name of the metric; the records have it, or `loss` and `tokens` for perplexity.
        records: Lines of predictions.jsonl, at least one.
        reported: Published score in percent.
    """
    reported = None if reported is None else reported / 100
    if metric == "perplexity":
        losses, tokens = (np.array([record[name] for record in records], float) for name in ("loss", "tokens"))
        low, high = bootstrap(losses, tokens)
        return Figure(
            metric, math.exp(np.average(losses, weights=tokens)), math.exp(low), math.exp(high), "bootstrap", reported
        )
    values = np.array([record[metric] for record in records], float)
    if metric.removesuffix(FOLDED) in COUNTED:
        return Figure(metric, float(values.mean()), *wilson(int(values.sum()), len(values)), "Wilson", reported)
    return Figure(metric, float(values.mean()), *bootstrap(values, np.ones(len(values))), "bootstrap", reported)


class Report:
    """The scores of an evaluation, of all examples and of each file.

    Args:
        task: The benchmark.
        name: Name of the task on the command line.
        shots: Number of demonstrations before each question.
        records: The finished examples.
    """

    def __init__(self, task: Task, name: str, shots: int, records: Sequence[dict[str, Any]]):
        self.name, self.title, self.setting, self.records = name, task.title, min(shots, 2), records
        self.source = task.reported_by
        self.metrics = task.metrics
        metrics = [*task.metrics, *(metric + FOLDED for metric in task.metrics if task.kind == "generation")]
        self.figures = [
            figure(metric, records, task.reported.get(metric, (None,) * 3)[self.setting]) for metric in metrics
        ]
        files = {
            file: [one for one in records if one["file"] == file]
            for file in dict.fromkeys(record["file"] for record in records)
        }
        self.of_files = {
            file: [figure(metric, own) for metric in metrics] for file, own in files.items() if len(files) > 1
        }

    def table(self) -> str:
        """Lay out the scores as a Markdown table: of all examples, and of each file if there are several."""
        rows = [[self.title, *_cells(one), str(len(self.records))] for one in self.figures]
        for file, figures in self.of_files.items():
            count = sum(record["file"] == file for record in self.records)
            rows += [[file, *_cells(one), str(count)] for one in figures]
        header = [
            "",
            "metric",
            "this model",
            "95% interval",
            f"{self.source}, 2.6B {SETTINGS[self.setting]}",
            "examples",
        ]
        return table(header, rows)

    def closing_line(self) -> str:
        """Return the line with which the ModelZoo's script ends. It has the official metrics only."""
        values = {one.metric: round(one.value, 4) for one in self.figures if one.metric in self.metrics}
        return f"Metric for dataset {self.name} is {values}"

    def save(self, folder: Path, seconds: float) -> None:
        """Write result.json."""
        result = {
            "task": self.name,
            "examples": len(self.records),
            "seconds": round(seconds, 1),
            "figures": [vars(one) for one in self.figures],
            "files": {file: [vars(one) for one in figures] for file, figures in self.of_files.items()},
        }
        write_text(folder / RESULT_FILE, json.dumps(result, ensure_ascii=False, indent=1))


def _cells(one: Figure) -> list[str]:
    scale = 1 if one.metric == "perplexity" else 100
    reported = "-" if one.reported is None else f"{one.reported * scale:.2f}"
    return [
        one.metric.replace(FOLDED, " (folded)"),
        f"{one.value * scale:.2f}",
        f"{one.low * scale:.2f} to {one.high * scale:.2f} ({one.interval})",
        reported,
    ]
