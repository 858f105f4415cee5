"""Starts this machine's ranks of the distributed servable: `python serving_agent.py`. See `--help`."""

import sys
from pathlib import Path


def main() -> None:
    """Run the ranks until they are stopped."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this file's folder, which Python puts there
    from serving_increment import agent
    from src.common.errors import run_program

    run_program(agent.main)


if __name__ == "__main__":
    main()
