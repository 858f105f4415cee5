"""Run command lines of the plug-in's programs, and print what came of each: [[status, stderr], ...] as JSON.

MindFormers needs seconds to import. So it is imported once, and each command line gets a child of this process.

usage: python refusals.py '[["ports.mindformers.run_mindformer", "--config", ...], ...]'
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

import mindformers  # noqa: F401

from ports.mindformers import configuration, registration, training  # noqa: F401


def outcome(module: str, *arguments: str) -> tuple[int, str]:
    """Return exit status and stderr of `python -m module arguments`."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(errors.fileno(), 2)
            os._exit(status_of(module, arguments))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        return status, errors.read().decode()


def status_of(module: str, arguments: tuple[str, ...]) -> int:
    """Run a program in this process."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    print(json.dumps([outcome(*command) for command in json.loads(sys.argv[1])]))
