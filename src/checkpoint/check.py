"""Whether a strategy file is of a checkpoint's model: `python -m src.checkpoint.check --help`."""

from dataclasses import dataclass

from src.common.cli import parse
from src.common.errors import InputError, run_program


@dataclass
class CheckArguments:
    """See that a strategy file, which a run in semi-automatic parallel wrote, is of the model of a checkpoint.

    A run's checkpoints say themselves who has which slice; this is for scripts that are given both.

    Args:
        strategy: A strategy file of MindSpore's, or a run's folder of them, one a stage.
        checkpoint: A run's output folder or a checkpoint folder.
    """

    strategy: str
    checkpoint: str


def main() -> None:
    """Parse, read, compare."""
    arguments = parse(CheckArguments, "python -m src.checkpoint.check")
    from pathlib import Path

    from src.checkpoint import store
    from src.checkpoint.formats.strategy import require_model
    from src.pangu_alpha_config import load_config

    settings = store.config_beside(store.find(arguments.checkpoint))
    if settings is None:
        raise InputError(f"{arguments.checkpoint} has no {store.CONFIG_FILE}: it is no checkpoint of a run")
    require_model(Path(arguments.strategy), load_config(settings).model)


if __name__ == "__main__":
    run_program(main)
