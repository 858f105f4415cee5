"""How the tests are shared out when several workers run them."""

import re
import subprocess
import sys

from tests.support.programs import ROOT

FILES = ("test_checks.py", "test_files.py", "test_tables.py")


def test_tests_of_a_file_are_for_one_worker():
    files = [f"tests/common/{name}" for name in FILES]
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-v", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    ran = re.findall(r"\[(gw\d)\].* PASSED (\S+)::", done.stdout)
    assert {file for _, file in ran} == set(files), done.stdout
    assert len(ran) > len(files) == len(set(ran))
