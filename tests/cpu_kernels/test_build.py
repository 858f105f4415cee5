"""Where the kernels are compiled for a processor that the process does not have."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.cpu_kernels import build
from tests.support.programs import ROOT

ASK = "from src.cpu_kernels import build; print(build.library())"


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("qemu-x86_64"), reason="no qemu-user")
def test_an_emulated_processor_without_avx512_gets_the_plain_operators():
    if build.library() is None:
        pytest.skip("no compiler here")
    command = ["qemu-x86_64", "-cpu", "Haswell-v4", sys.executable, "-c", ASK]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    [told] = [line for line in process.stderr.splitlines() if not line.startswith("qemu-x86_64: warning")] or [""]
    if "avx512" in Path("/proc/cpuinfo").read_text():
        assert process.stdout == "None\n" and told.startswith("warning: no compiled kernels") and "emulator" in told
    else:
        assert process.stdout.endswith(".so\n") and not told
