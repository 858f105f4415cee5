"""Machines that a search knows, and how settings name them."""

import pytest

from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.parallel.plan.search.machines import MACHINES, machine_name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"device_target": "GPU"}, "A100"),
        ({"chip": "A2"}, "A2"),
        ({"chip": "A3", "device_target": "Ascend"}, "A3"),
        ({"chip": "910A"}, "910A"),
    ],
)
def test_settings_name_a_machine(settings, name):
    assert machine_name(ParallelConfig(**settings)) == name


@pytest.mark.parametrize("settings", [{}, {"device_target": "Ascend"}, {"device_target": "GPU", "chip": "A2"}])
def test_settings_that_name_none_or_two_are_refused(settings):
    with pytest.raises(InputError, match="parallel.chip"):
        machine_name(ParallelConfig(**settings))


def test_each_machine_has_sources_and_is_fitted_to_published_runs():
    for machine in MACHINES.values():
        assert machine.sources
        assert machine.shares == MACHINES[machine.fitted_to].shares
        for share in (machine.shares.products, machine.shares.traffic, machine.shares.links):
            assert 0 < share <= 1
    assert [name for name, machine in MACHINES.items() if machine.fitted_to != name] == ["A3"]
