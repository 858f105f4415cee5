"""Output on the terminal, and output that only the logs keep."""

import sys

import pytest

from tests.support.launcher import FIRST_TWO, launch, log
from tests.support.programs import finish, run


def test_output_after_a_failure_is_only_in_the_logs(folder, mark):
    status, told, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:complain", "1:fail"]))
    assert (status, told) == (3, "waiting\n")
    assert errors.startswith("error: rank 1 ended") and "because of another" not in errors
    assert log(folder, 0) == "waiting\nbecause of another\n"


@pytest.mark.parametrize("behaviours", [["all:bad"], ["0:bad", "1:wait"], ["0:wait", "1:bad"]])
def test_bad_input_is_reported_once(behaviours, folder, mark):
    status, _, errors = finish(launch(folder, *FIRST_TWO, behaviours=behaviours))
    assert (status, errors) == (2, "error: no such data\n")


def test_noise_of_mindspore_is_only_in_the_log(folder, mark):
    noise = "[INFO] DISTRIBUTED(1,2,python): dispatch success!"
    code = f"import sys; print('error: data', file=sys.stderr); print({noise!r}, file=sys.stderr); sys.exit(2)"
    status, _, errors = run("-m", "src.parallel.launch", *FIRST_TWO, "--", sys.executable, "-c", code, cwd=folder)
    assert (status, errors) == (2, "error: data\n")
    assert log(folder, 0) == f"error: data\n{noise}\n"


MINDSPORE_LOG = """\
[ERROR] KERNEL(1,2,python): launch failed.
Traceback (most recent call last):
  File "train.py", line 24, in <module>
    run_program(main)
    ^^^^^^^^^^^^^^^^^
RuntimeError:
----------------------------------------------------
- Kernel error:
----------------------------------------------------
Launch kernel failed: AllReduce-op0

----------------------------------------------------
- The Function Call Stack: (For framework developers)
----------------------------------------------------
In file collectives.py:28

----------------------------------------------------
- The Traceback of Net Construct Code:
----------------------------------------------------

# In file collectives.py:28
        return self.reduce(x)
               ^~~~~~~~~~~~~~

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
kernel_actor.cc:995 OnMemoryAllocFinish

[INFO] DISTRIBUTED(1,2,python): dispatch success!
"""


def test_inner_stacks_are_not_printed(folder, mark):
    (folder / "log").write_text(MINDSPORE_LOG)
    status, _, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:wait", "1:log"]))
    assert status == 1
    assert errors.splitlines()[1:] == [
        "    [ERROR] KERNEL(1,2,python): launch failed.",
        "    Traceback (most recent call last):",
        '      File "train.py", line 24, in <module>',
        "        run_program(main)",
        "    RuntimeError:",
        "    - Kernel error:",
        "    Launch kernel failed: AllReduce-op0",
    ]


def test_a_bar_is_shown_while_it_moves(folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["0:bar", "1:wait"])
    assert process.stderr.read(7) == "\nstep 1"  # text mode: \r is read as a line's end
    process.terminate()
    finish(process)
