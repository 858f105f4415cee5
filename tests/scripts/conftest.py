"""A copy of the scripts that starts no program."""

import os
import subprocess

import pytest

from tests.support.scripts import copy_of_the_scripts

FAKE_PYTHON = """#!/bin/bash
if [ -n "${FAILING-}" ] && [[ "$*" = *$FAILING* ]]; then echo "error: broken" >&2 && exit 2; fi
if [ "$1" = -c ]; then echo 12345; else printf '%s\\n' "$@"; fi
"""
FAKE_MPIRUN = """#!/bin/bash
printf '%s\\n' mpirun "$@"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Return a function that runs a script of a copy of the repository, and returns (status, arguments, stderr).

    The copy's Python and mpirun only print their arguments.
    """
    root = tmp_path_factory.mktemp("repository")
    copy_of_the_scripts(root, FAKE_PYTHON)
    (root / "hosts").write_text("# the cluster\n\n10.0.0.1 slots=8\n10.0.0.2 slots=8\n")
    (root / "checkpoints").mkdir()
    for name in ("filtered_0.ckpt", "other_0.ckpt", "other_1.ckpt"):
        (root / "checkpoints" / name).touch()
    (root / "run").mkdir()
    for name in ("strategy.ckpt", "run/state.json"):
        (root / name).touch()
    (root / "bin/mpirun").write_text(FAKE_MPIRUN)
    (root / "bin/mpirun").chmod(0o755)

    def run(name, *arguments, **variables):
        names = ("DEVICE_TARGET", "MS_SCHED_HOST", "MS_SCHED_PORT", "NCCL_DEBUG")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {"PATH": f"{root}/bin:/usr/bin:/bin"} | variables
        done = subprocess.run(
            ["bash", f"scripts/{name}.sh", *arguments],
            cwd=root,
            env=environment,
            text=True,
            capture_output=True,
            timeout=60,
        )
        return done.returncode, done.stdout.replace(f"{root}/", "").splitlines(), done.stderr

    return run
