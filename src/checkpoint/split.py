"""The slices of a run of several ranks out of any checkpoint: `python -m src.checkpoint.split --help`."""

from dataclasses import dataclass
from pathlib import Path

from src.common.cli import parse
from src.common.errors import run_program
from src.common.settings import ParallelConfig


@dataclass
class SplitArguments:
    """Write a checkpoint of any number of ranks as the ranks of another plan would have.

    To train on from it, name it as a run's: --output RUN/checkpoint/step_00000100. (A run goes on from other slices or
    from whole parameters, too; each rank then reads its parts of them.)

    Args:
        checkpoint: A run's output folder (its newest whole checkpoint is taken) or a checkpoint folder.
        output: The checkpoint folder to write; it must not be there yet.
        parallel: The plan, and what else the new run's configuration says of its machines.
    """

    checkpoint: str
    output: str
    parallel: ParallelConfig


def main() -> None:
    """The command line."""
    arguments = parse(SplitArguments, "python -m src.checkpoint.split")
    from src.checkpoint.reslice import reslice  # MindSpore takes seconds to import: bad arguments are answered before

    print(f"{arguments.output}: {reslice(arguments.checkpoint, Path(arguments.output), arguments.parallel)}")


if __name__ == "__main__":
    run_program(main)
