"""Signals to a script reach the program that it starts."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from tests.support.programs import ROOT

# It saves when it is told to stop, as train.py does.
PROGRAM = """#!/bin/bash
trap 'sleep 0.5; echo saved; exit 143' TERM
trap 'sleep 0.5; echo saved; exit 130' INT
echo begun
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("to_group", [False, True], ids=["the script", "its process group"])
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_script_lets_its_program_save_and_waits(tmp_path, number, status, to_group):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts/setup_env.sh").write_text("exit 0\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PROGRAM)
    python.chmod(0o755)
    script = subprocess.Popen(
        ["bash", "scripts/run_standalone_train.sh", "data", "fp32", "tiny", "8"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "device0/log0.log"
    try:
        ends = time.monotonic() + 30
        while not (log.exists() and log.read_text()) and time.monotonic() < ends:
            time.sleep(0.05)
        (os.killpg if to_group else os.kill)(script.pid, number)
        told, _ = script.communicate(timeout=30)
        assert told == log.read_text() and told.endswith("saved\n")
        assert script.returncode == status
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
