"""Fixtures of the launcher's tests."""

import copy
import json
import uuid

import pytest

from tests.support.launcher import RANK, TABLE, alive


@pytest.fixture
def folder(tmp_path):
    """A folder with rank.py and the rank table of two machines with two ranks each."""
    (tmp_path / "rank.py").write_text(RANK)
    servers = [
        {
            "server_id": server,
            "device": [
                {"device_id": str(device), "device_ip": f"192.168.0.{rank}", "rank_id": str(rank)}
                for device, rank in devices
            ],
        }
        for server, devices in (("192.0.2.1", [(4, 0), (6, 1)]), ("127.0.0.1", [(0, 2), (1, 3)]))
    ]
    (tmp_path / "four.json").write_text(
        json.dumps({"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"})
    )
    return tmp_path


@pytest.fixture
def mark(monkeypatch):
    """Set a variable in the environment of all processes that the test starts, and check that none is left."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("LAUNCH_TEST", value)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # the launcher must set it
    yield value
    left = alive(value)
    for process in left:
        process.kill()
    assert not left


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a changed copy of TABLE to a file."""

    def write(change=lambda table: None, name="table.json"):
        table = copy.deepcopy(TABLE)
        change(table)
        (tmp_path / name).write_text(json.dumps(table))
        return tmp_path / name

    return write
