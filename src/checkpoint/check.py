"""Check that a strategy file belongs to a checkpoint's model: `python -m src.checkpoint.check --help`."""

from dataclasses import dataclass

from src.common.cli import parse
from src.common.errors import InputError, run_program


@dataclass
class CheckArguments:
    """Check that a strategy file of a run in semi-automatic parallel mode belongs to the model of a checkpoint.

    A run's own checkpoints do not need a strategy file. This program is for scripts that get both.

    Args:
        strategy: A strategy file of MindSpore, or a run's folder with one such file for each pipeline stage.
        checkpoint: A run's output folder or a checkpoint folder.
    """

    strategy: str
    checkpoint: str


def main() -> None:
    """Parse the command line and compare the strategy with the model."""
    arguments = parse(CheckArguments, "python -m src.checkpoint.check")
    from pathlib import Path

    from src.checkpoint import store
    from src.checkpoint.formats.strategy import require_model
    from src.pangu_alpha_config import load_config

    settings = store.config_beside(store.find(arguments.checkpoint))
    if settings is None:
        raise InputError(f"{arguments.checkpoint} has no {store.CONFIG_FILE}: it is not a checkpoint of a run")
    require_model(Path(arguments.strategy), load_config(settings).model)


if __name__ == "__main__":
    run_program(main)
