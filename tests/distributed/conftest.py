"""Runs that several test files share: each is made once."""

import pytest

from tests.distributed.helpers import ragged_ids
from tests.helpers import write_mindrecord


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with 27 records to train on, so that an epoch leaves some over, and 8 for validation."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, rows) in enumerate({"train": 27, "validation": 8}.items()):
        write_mindrecord(folder / f"{name}.mindrecord", ragged_ids(rows, seed))
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
