"""Runs that several test files share. Each runs once."""

import pytest

from tests.support.distributed_runs import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return the folder with the data of `write_data`."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """Return a function that runs a Run to its end, once, and returns its output folder."""
    folders = {}

    def finish(run):
        if str(run) not in folders:
            folder = tmp_path_factory.mktemp("run")
            status, told, errors = run.finish(data, folder)
            assert status == 0, errors
            assert f"finished step {run.steps}:" in told
            folders[str(run)] = folder
        return folders[str(run)]

    return finish
