"""Signals to a script reach the program that it starts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from tests.support.programs import ROOT

# It saves when it is told to stop, as train.py does.
PROGRAM = f"""#!{sys.executable}
import os, signal, sys, time

def stop(number, frame):
    time.sleep(0.5)
    os.write(1, b"saved\\n")  # print must not begin within another print
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
os.write(1, b"begun\\n")
while True:
    time.sleep(0.1)
"""


@pytest.fixture
def clone(tmp_path):
    """The scripts over a Python that is PROGRAM."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts/setup_env.sh").write_text("exit 0\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PROGRAM)
    python.chmod(0o755)
    return tmp_path


@contextmanager
def begun(clone, *command):
    """Start a script in a process group of its own. Nothing of the group is left at the end."""
    script = subprocess.Popen(
        ["bash", *command],
        cwd=clone,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield script
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


@pytest.mark.parametrize("to_group", [False, True], ids=["the script", "its process group"])
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_quickstart_ends_its_step_and_begins_no_other(clone, number, status, to_group):
    with begun(clone, "scripts/run_quickstart.sh") as script:
        while script.stdout.readline() not in ("begun\n", ""):
            pass
        (os.killpg if to_group else os.kill)(script.pid, number)
        told, _ = script.communicate(timeout=30)
        assert told == "saved\n" and script.returncode == status
        with pytest.raises(ProcessLookupError):
            os.killpg(script.pid, 0)


@pytest.mark.parametrize("to_group", [False, True], ids=["the script", "its process group"])
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_script_lets_its_program_save_and_waits(clone, number, status, to_group):
    log = clone / "device0/log0.log"
    with begun(clone, "scripts/run_standalone_train.sh", "data", "fp32", "tiny", "8") as script:
        ends = time.monotonic() + 30
        while not (log.exists() and log.read_text()) and time.monotonic() < ends:
            time.sleep(0.05)
        (os.killpg if to_group else os.kill)(script.pid, number)
        told, _ = script.communicate(timeout=30)
        assert told == log.read_text() and told.endswith("saved\n")
        assert script.returncode == status
