"""The step-time model against published runs. docs/plan_search.md holds the figures."""

import re

import pytest

from src.parallel.plan.search.fit import check, fit, tie
from src.parallel.plan.search.machines import MACHINES
from src.parallel.plan.search.published import TABLE_1, TABLE_5, published_runs
from src.parallel.plan.search.step_time import stage_costs, step_seconds
from tests.support.programs import ROOT

PAGES = ["docs/plan_search.md", "docs/zh/plan_search.md"]
FITTED = [name for name, machine in MACHINES.items() if machine.fitted_to == name]
CHECKED = {name: check(name) for name in FITTED}


def runs_of(machine):
    return [run for run in published_runs() if run.machine == machine]


def mean_error(runs, shares):
    errors = [
        abs(step_seconds(stage_costs(run.config, MACHINES[run.machine], run.schedule), shares) / run.seconds - 1)
        for run in runs
    ]
    return sum(errors) / len(errors)


@pytest.mark.parametrize("name", FITTED)
def test_stored_shares_are_the_result_of_the_fit(name):
    """A fit to other arithmetic of rank_memory may move by a step of its grid, but not the error."""
    runs, machine = runs_of(name), MACHINES[name]
    assert mean_error(runs, machine.shares) <= mean_error(runs, fit(runs)) + 0.001


def test_a_run_left_out_has_no_part_in_its_own_prediction():
    runs = runs_of("910A")
    for number, checked in enumerate(CHECKED["910A"]):
        others = runs[:number] + runs[number + 1 :]
        stages = stage_costs(checked.run.config, MACHINES["910A"], checked.run.schedule)
        assert checked.left_out == pytest.approx(step_seconds(stages, fit(others)))
    assert checked.left_out != checked.predicted


@pytest.mark.parametrize(("name", "mean", "largest"), [("A100", 0.05, 0.10), ("A2", 0.10, 0.22)])
def test_errors_are_fit_to_choose_by(name, mean, largest):
    errors = [abs(one.left_out_error) for one in CHECKED[name]]
    assert sum(errors) / len(errors) < mean and max(errors) < largest
    squares = sum(error**2 for error in errors) / len(errors)
    assert tie(CHECKED[name]) == pytest.approx((2 * squares) ** 0.5)


def test_one_paper_predicts_the_other():
    papers = [[run for run in runs_of("A100") if run.source == source] for source in (TABLE_1, TABLE_5)]
    for fitted, other in (papers, papers[::-1]):
        shares = fit(fitted)
        errors = [mean_error([run], shares) for run in other]
        assert sum(errors) / len(errors) < 0.10
        for page in PAGES:
            text = (ROOT / page).read_text(encoding="utf-8")
            assert f"{sum(errors) / len(errors):.1%}" in text and f"{max(errors):.1%}" in text


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_hold_the_figures(page):
    shown = {
        tuple(cell.strip() for cell in line.strip("|\n").split("|"))
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    }
    for name in FITTED:
        for one in CHECKED[name]:
            figures = (
                f"{one.run.seconds:.2f}",
                f"{one.predicted:.2f}",
                f"{one.error:+.1%}",
                f"{one.left_out_error:+.1%}",
            )
            assert (name, one.run.name, *figures) in shown


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_hold_the_means(page):
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    for name in FITTED:
        errors = [abs(one.left_out_error) for one in CHECKED[name]]
        machine = MACHINES[name]
        shares = (f"{share:.0%}" for share in (machine.shares.products, machine.shares.traffic, machine.shares.links))
        row = [name, str(len(errors)), *shares, f"{sum(errors) / len(errors):.1%}", f"{max(errors):.1%}"]
        assert f"| {' | '.join(row)} | {tie(CHECKED[name]):.0%} |" in text
