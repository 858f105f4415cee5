"""The step-time model against published runs: its three shares are fitted to them, and its errors are told.

A run's leave-one-out error is that of a model that was fitted to the machine's other runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from src.parallel.plan.search.machines import MACHINES, Shares
from src.parallel.plan.search.published import Run, published_runs
from src.parallel.plan.search.step_time import stage_costs, step_seconds

# The shares that a fit tries: products, traffic, links.
GRID = [
    Shares(products / 50, traffic / 20, links / 10)
    for products, traffic, links in product(range(15, 48), range(4, 21), range(3, 10))
]


_SLOWNESS = np.array([[1 / one.products, 1 / one.traffic, 1 / one.links] for one in GRID]).T


@dataclass(frozen=True)
class Checked:
    """A published run, and what the model says of it.

    Args:
        run: The run.
        predicted: Seconds of a step, by the machine's shares.
        left_out: Seconds of a step, by a fit to the machine's other runs.
    """

    run: Run
    predicted: float
    left_out: float

    @property
    def error(self) -> float:
        """Relative error by the machine's shares."""
        return self.predicted / self.run.seconds - 1

    @property
    def left_out_error(self) -> float:
        """Relative error by the fit to the other runs."""
        return self.left_out / self.run.seconds - 1


def fit(runs: Sequence[Run]) -> Shares:
    """Return the shares of GRID with the smallest mean error over runs on one machine."""
    return GRID[_best(np.abs(_errors(runs)))]


def check(machine: str) -> list[Checked]:
    """Return each published run on a machine of MACHINES with what the model says of it."""
    runs = [run for run in published_runs() if run.machine == machine]
    errors = _errors(runs)
    checked = []
    for number, run in enumerate(runs):
        predicted = step_seconds(stage_costs(run.config, MACHINES[machine], run.schedule), MACHINES[machine].shares)
        others = _best(np.abs(np.delete(errors, number, axis=0)))
        checked.append(Checked(run, predicted, run.seconds * (1 + float(errors[number, others]))))
    return checked


def _errors(runs: Sequence[Run]) -> np.ndarray:
    """Return the relative errors of each run's prediction by each element of GRID. Their shape is (runs, shares)."""
    predicted = []
    for run in runs:
        stages = stage_costs(run.config, MACHINES[run.machine], run.schedule)
        times = np.array([[stage.products, stage.traffic, stage.messages] for stage in stages])
        predicted.append((times @ _SLOWNESS).max(axis=0))  # step_seconds, for all shares at once
    return np.array(predicted) / np.array([run.seconds for run in runs])[:, None] - 1


def _best(errors: np.ndarray) -> int:
    return int(errors.mean(axis=0).argmin())


def tie(checked: Sequence[Checked]) -> float:
    """Return the relative difference of two predictions under which neither plan is known to be the faster one.

    It is the standard deviation of a difference of two predictions, each with the runs' leave-one-out errors.
    """
    return math.sqrt(2 * sum(one.left_out_error**2 for one in checked) / len(checked))
