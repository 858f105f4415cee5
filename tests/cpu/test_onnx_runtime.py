"""ONNX Runtime tells nobody that it runs."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.programs import ROOT

SESSION = """
import time
import src.cpu.onnx_network as network
network.ort.SessionOptions()
time.sleep(1)  # its telemetry has a thread of its own
"""


def imported(home, *before):
    """Run SESSION with a home folder of its own, behind the command `before`. Return the files that it left there."""
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "XDG" not in name}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*before, sys.executable, "-c", SESSION], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_it_writes_no_device_id(tmp_path):
    assert imported(tmp_path) == []


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace: apt-get install strace")
def test_it_opens_no_connection(tmp_path):
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    imported(home, "strace", "-f", "-o", trace, "-e", "trace=socket,connect,sendto,sendmmsg")
    assert not re.search(r"AF_INET|connect\(|send", trace.read_text())


def test_only_one_file_imports_it():
    files = [*ROOT.glob("*.py"), *(file for folder in ("src", "web", "serving_increment", "benchmarks", "tests")
                                   for file in (ROOT / folder).rglob("*.py"))]  # fmt: skip
    importing = [file.name for file in files if re.search(r"^\s*(import|from) onnxruntime", file.read_text(), re.M)]
    assert importing == ["onnx_runtime.py"]
