"""Runs that several test files share: each is made once."""

import pytest

from tests.support.distributed_runs import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of `write_data`."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """A function from a Run to its output folder, once it has come to its end."""
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
