"""The program `python -m src.parallel.launch`."""

import os
import sys

from src.common.cli import parse
from src.common.errors import run_program
from src.parallel.launch.launcher import PROG, LaunchArguments, supervisor
from src.parallel.launch.supervisor import die_with


def main() -> None:
    """Run the command line."""
    own, program = sys.argv[1:], []
    if "--" in own:
        own, program = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parse(LaunchArguments, PROG, own)
    if arguments.mpirun:
        die_with(os.getppid())
    sys.exit(supervisor(arguments, program).run())


if __name__ == "__main__":
    run_program(main)
