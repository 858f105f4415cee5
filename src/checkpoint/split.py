"""Split a checkpoint into slices for several ranks: `python -m src.checkpoint.split --help`."""

from dataclasses import dataclass
from pathlib import Path

from src.common.cli import parse
from src.common.errors import run_program
from src.common.settings import ParallelConfig


@dataclass
class SplitArguments:
    """Rewrite a checkpoint of any number of ranks with the slices of another plan's ranks.

    To continue training from it, give it a name in a run's folder: --output RUN/checkpoint/step_00000100. (A run can
    also continue from other slices or from whole parameters. Each rank then reads its own parts of them.)

    Args:
        checkpoint: A checkpoint folder, or a run's output folder with its newest whole checkpoint.
        output: Checkpoint folder to write. It must not exist.
        parallel: Parallel plan and devices of the new checkpoint's configuration.
        allow_nan: Accept parameters with NaN or infinite values.
    """

    checkpoint: str
    output: str
    parallel: ParallelConfig
    allow_nan: bool = False


def main() -> None:
    """Parse the command line, split, and print a summary."""
    arguments = parse(SplitArguments, "python -m src.checkpoint.split")
    from src.checkpoint.reslice import reslice  # imports MindSpore, after errors in the arguments are reported

    output = Path(arguments.output)
    print(f"{output}: {reslice(arguments.checkpoint, output, arguments.parallel, arguments.allow_nan)}")


if __name__ == "__main__":
    run_program(main)
