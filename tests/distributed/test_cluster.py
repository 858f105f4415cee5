"""The launcher with MindSpore's scheduler and collectives."""

import os
import shutil
import signal
import sys
import time

import psutil
import pytest

from src.parallel.launch.launcher import free_port
from tests.support.programs import finish, start

# Each rank adds its power of ten. The last argument is the number of sums.
RANK = """
import os, sys, time
import mindspore as ms
import numpy as np
from mindspore.communication import get_group_size, get_rank, init
ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
init()
reduce = ms.ops.AllReduce()
for step in range(int(sys.argv[1])):
    total = reduce(ms.Tensor(np.float32([10 ** get_rank()]))).asnumpy()[0]
    print(f"rank {get_rank()} of {get_group_size()}, process {os.getpid()}: {total:.0f}", flush=True)
    time.sleep(0.2 * (step > 0))
"""
TIMEOUT = 120


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    return tmp_path


@pytest.fixture
def launched(folder):
    """Return a function that starts a launcher. At the end of the test, all of its processes must be gone."""
    processes = []

    def launch(*flags, steps=1):
        processes.append(start("-m", "src.parallel.launch", *flags, "--", "rank.py", steps, cwd=folder))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
    left = [
        process
        for process in psutil.process_iter(["cwd"])
        if process.info["cwd"] == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    ]
    for process in left:
        process.kill()
    assert not left


def lines(folder, rank):
    """Return the lines that a rank has printed, without MindSpore's own lines."""
    log = folder / f"device{rank}" / f"log{rank}.log"
    return [line for line in log.read_text().splitlines() if line.startswith("rank")] if log.exists() else []


def wait_for_lines(folder, ranks, count=2):
    deadline = time.monotonic() + TIMEOUT
    while any(len(lines(folder, rank)) < count for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def process_of(folder, rank):
    return int(lines(folder, rank)[0].split("process ")[1].split(":")[0])


def test_ranks_meet_in_their_order(launched, folder):
    status, told, errors = finish(launched("--rank_size=3"), TIMEOUT)
    assert (status, errors) == (0, "")
    for rank in range(3):
        assert lines(folder, rank) == [f"rank {rank} of 3, process {process_of(folder, rank)}: 111"]
    assert told.splitlines() == lines(folder, 0)


def test_a_killed_rank_ends_all_within_a_minute(launched, folder):
    launcher = launched("--rank_size=2", steps=10000)
    wait_for_lines(folder, range(2))
    os.kill(process_of(folder, 1), signal.SIGKILL)
    status, _, errors = finish(launcher, timeout=60)
    assert status == 137
    assert "error: rank 1 was killed by SIGKILL" in errors and "rank 1 of 2" in errors


@pytest.mark.slow
def test_other_machines_notice_within_a_minute(launched, folder):
    """Two launchers stand for two machines. The rank that dies is not on the machine of the scheduler."""
    meeting = ["--scheduler_address=127.0.0.1", f"--scheduler_port={free_port()}"]
    first, second = (
        launched("--rank_size=2", "--local_device_num=1", f"--rank_start={rank}", *meeting, steps=10000)
        for rank in range(2)
    )
    wait_for_lines(folder, range(2))
    assert lines(folder, 1)[0].endswith(": 11")
    os.kill(process_of(folder, 1), signal.SIGKILL)
    status, _, errors = finish(second, timeout=10)
    assert status == 137 and "error: rank 1 was killed by SIGKILL" in errors
    status, _, errors = finish(first, timeout=60)
    # One of these comes first: the sum fails, the scheduler misses rank 1, or MindSpore ends the rank itself.
    assert status in (1, 128 + signal.SIGTERM) and "so all ranks are stopped" in errors


@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun here")
def test_mpirun_starts_the_ranks(folder):
    settings = ["--rank_size=2", "--scheduler_address=127.0.0.1", f"--scheduler_port={free_port()}"]
    code = "import os, sys; os.execvp('mpirun', ['mpirun', *sys.argv[1:]])"
    status, told, errors = finish(
        start(
            "-c",
            code,
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            2,
            sys.executable,
            "-m",
            "src.parallel.launch",
            "--mpirun",
            *settings,
            "--",
            "rank.py",
            1,
            cwd=folder,
        ),
        TIMEOUT,
    )
    assert status == 0, errors
    assert lines(folder, 1)[0].endswith(": 11")
    assert told.splitlines() == lines(folder, 0)
