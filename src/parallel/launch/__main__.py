"""The program `python -m src.parallel.launch`."""

from src.common.errors import run_program
from src.parallel.launch.launcher import main

if __name__ == "__main__":
    run_program(main)
