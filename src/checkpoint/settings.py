"""Command lines of programs that use a checkpoint, which brings settings of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from src.common.cli import flag_value, parse
from src.common.model_sizes import check_mode
from src.pangu_alpha_config import RunConfig

Arguments = TypeVar("Arguments", bound=RunConfig)


def parse_with_checkpoint(
    arguments_class: type[Arguments], prog: str, arguments: Sequence[str]
) -> tuple[Arguments, Path | None]:
    """A command line with `--checkpoint`, over the settings that lie beside the checkpoint; and its weights, if any.

    Raises:
        InputError: There is no such checkpoint, or --mode means another network than it has.
    """
    weights, beside = None, None
    if checkpoint := flag_value("--checkpoint", arguments):
        from src.checkpoint import store  # imports MindSpore, so only where it is needed

        weights = store.find(checkpoint, flag_value("--checkpoint_name", arguments) or "")
        beside = store.config_beside(weights)
    config = parse(arguments_class, prog, arguments, beside)
    if beside and (mode := flag_value("--mode", arguments)):
        check_mode(mode, config.model, beside)
    return config, weights
