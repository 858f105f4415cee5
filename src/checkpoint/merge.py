"""One file of weights out of the slices of a run of several ranks: `python -m src.checkpoint.merge --help`."""

from dataclasses import dataclass
from pathlib import Path

from src.common.cli import parse
from src.common.errors import run_program


@dataclass
class MergeArguments:
    """Write a checkpoint of any number of ranks as one process would have: model.ckpt, optimizer.ckpt and the rest.

    To train on from it, name it as a run's: --output RUN/checkpoint/step_00000100. (A run goes on from slices, too.)

    Args:
        checkpoint: A run's output folder (its newest whole checkpoint is taken) or a checkpoint folder.
        output: The checkpoint folder to write; it must not be there yet.
    """

    checkpoint: str
    output: str


def main() -> None:
    """The command line."""
    arguments = parse(MergeArguments, "python -m src.checkpoint.merge")
    from src.checkpoint.reslice import reslice  # MindSpore takes seconds to import: bad arguments are answered before

    print(f"{arguments.output}: {reslice(arguments.checkpoint, Path(arguments.output))}")


if __name__ == "__main__":
    run_program(main)
