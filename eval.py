"""Score a checkpoint on a benchmark: `python eval.py --checkpoint output --task c3 --task_path DIR`. See `--help`."""

import sys
from collections.abc import Sequence

from src.checkpoint.settings import parse_with_checkpoint
from src.common.errors import run_program
from src.common.memory import freeze_objects
from src.evaluation.config import EvalConfig, typed_generation


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (the command line when None) and evaluate."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config, weights = parse_with_checkpoint(EvalConfig, "eval.py", arguments)
    from src.evaluation.run import evaluate  # imports MindSpore, after errors in the arguments are reported

    freeze_objects()
    evaluate(config, weights, typed_generation(arguments))


if __name__ == "__main__":
    run_program(main)
