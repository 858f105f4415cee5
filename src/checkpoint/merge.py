"""Merge the slices of several ranks into whole files: `python -m src.checkpoint.merge --help`."""

from dataclasses import dataclass
from pathlib import Path

from src.common.cli import parse
from src.common.errors import run_program


@dataclass
class MergeArguments:
    """Rewrite a checkpoint of any number of ranks as a checkpoint of one process, with whole parameters.

    To continue training from it, give it a name in a run's folder: --output RUN/checkpoint/step_00000100. (A run can
    also continue from slices.)

    Args:
        checkpoint: A checkpoint folder, or a run's output folder with its newest whole checkpoint.
        output: Checkpoint folder to write. It must not exist.
        allow_nan: Accept parameters with NaN or infinite values.
    """

    checkpoint: str
    output: str
    allow_nan: bool = False


def main() -> None:
    """Parse the command line, merge, and print a summary."""
    arguments = parse(MergeArguments, "python -m src.checkpoint.merge")
    from src.checkpoint.reslice import reslice  # imports MindSpore, after errors in the arguments are reported

    print(f"{arguments.output}: {reslice(arguments.checkpoint, Path(arguments.output), allow_nan=arguments.allow_nan)}")


if __name__ == "__main__":
    run_program(main)
