"""Ranks end together: after a failure, after a signal, and when the launcher is killed."""

import os
import signal
import time

import pytest

from src.parallel.launch import supervisor
from tests.support.launcher import FIRST_TWO, alive, launch, log, wait_until
from tests.support.programs import finish, run


def test_a_failing_rank_ends_all_and_is_reported(folder, mark):
    started = time.monotonic()
    status, told, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:wait", "1:fail"]))
    assert time.monotonic() - started < supervisor.GRACE_SECONDS
    assert status == 3
    assert told == "waiting\n"
    assert errors == (
        "error: rank 1 ended with status 3, so all ranks are stopped; the end of device1/log1.log:\n"
        "    working\n    step 2\n    Traceback\n"
    )


def test_a_killed_rank_ends_ranks_that_ignore_sigterm(folder, mark):
    status, _, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:killed", "1:deaf"]), timeout=60)
    assert status == 128 + signal.SIGKILL
    assert errors.startswith("error: rank 0 was killed by SIGKILL") and errors.endswith("\n    not flushed\n")


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_ranks_save_before_they_stop(number, wanted, folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["all:save"])
    assert process.stdout.readline() == "waiting\n"
    wait_until(lambda: log(folder, 1))
    process.send_signal(number)
    status, told, errors = finish(process)
    assert (status, told, errors) == (wanted, "saving\n", "")
    assert (folder / "saved0").exists() and (folder / "saved1").exists()


def test_a_second_signal_kills(folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["all:deaf"])
    assert process.stdout.readline() == "waiting\n"
    wait_until(lambda: log(folder, 1))
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    status, _, errors = finish(process, timeout=5)
    assert status == 143
    assert errors == "killed before they had stopped: rank 0, rank 1; what was saved before is intact\n"


def test_a_rank_that_could_not_save_keeps_nobody_waiting(folder, mark):
    """Rank 1 has no signal handler yet. Rank 0 would wait for it without end."""
    process = launch(folder, *FIRST_TWO, behaviours=["0:deaf", "1:wait"])
    wait_until(lambda: (folder / "device1/log1.log").exists() and log(folder, 0) and log(folder, 1))
    process.terminate()
    status, _, errors = finish(process, timeout=60)
    assert (status, errors) == (143, "killed before they had stopped: rank 0; what was saved before is intact\n")


def test_a_killed_launcher_takes_its_ranks_along(folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["all:deaf"])
    assert process.stdout.readline() == "waiting\n"
    wait_until(lambda: log(folder, 1))
    process.kill()
    process.wait()
    wait_until(lambda: not alive(mark), seconds=5)


def test_helpers_of_a_rank_end_with_it(folder, mark):
    status, told, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:helper"]), timeout=20)
    assert (status, errors) == (0, "")


def test_a_rank_that_ended_before_sigterm_is_still_noted(tmp_path):
    rank = supervisor.Member("rank 0", ["sh", "-c", "exit 3"], os.environ, tmp_path / "log")
    rank.start(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    os.waitid(os.P_PID, rank._process.pid, os.WEXITED | os.WNOWAIT)
    rank.terminate()
    assert rank.has_just_ended() and rank.status == 3


@pytest.mark.parametrize("scheduler_status", [0, 1])
def test_the_scheduler_may_end_first_but_not_fail(scheduler_status, folder, mark):
    """MindSpore's scheduler ends when all ranks have left the cluster; their processes end a little later."""
    code = f"""
import os, sys
from pathlib import Path
from src.parallel.launch.supervisor import Member, Supervisor
scheduler = Member("the scheduler", ["sh", "-c", "echo rank 5 is gone; exit {scheduler_status}"], os.environ, Path("s"))
rank = Member("rank 0", ["sh", "-c", "sleep 1; echo done"], os.environ, Path("r"), shown=True)
sys.exit(Supervisor([rank], scheduler, ranks_elsewhere=False).run())
"""
    status, told, errors = run("-c", code, cwd=folder)
    wanted = "error: the scheduler ended with status 1, so all ranks are stopped; the end of s:\n    rank 5 is gone\n"
    assert (status, told, errors) == ((1, "", wanted) if scheduler_status else (0, "done\n", ""))
