"""Parse command lines with --checkpoint, where the checkpoint brings settings of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from src.checkpoint.vocabulary import located
from src.common.cli import flag_value, parse
from src.common.model_sizes import check_mode
from src.pangu_alpha_config import RunConfig

Arguments = TypeVar("Arguments", bound=RunConfig)


def parse_with_checkpoint(
    arguments_class: type[Arguments], prog: str, arguments: Sequence[str]
) -> tuple[Arguments, Path | None]:
    """Parse a command line with --checkpoint. Flags override the settings that lie beside the checkpoint.

    Args:
        arguments_class: Dataclass of the settings.
        prog: Name of the program.
        arguments: The command line without the program.

    Returns:
        The settings, and the weights as `src.checkpoint.store.find` returns them (None without --checkpoint).

    Raises:
        InputError: There is no such checkpoint, or --mode names a size with another network.
    """
    weights, beside = None, None
    if checkpoint := flag_value("--checkpoint", arguments):
        from src.checkpoint import store  # imports MindSpore, so only where it is needed

        weights = store.find(checkpoint, flag_value("--checkpoint_name", arguments) or "")
        beside = store.config_beside(weights)
    config = parse(arguments_class, prog, arguments, beside)
    if not flag_value("--data.tokenizer_path", arguments):  # nothing takes the place of what a user names
        config.data = located(config.data, beside)
    if beside and (mode := flag_value("--mode", arguments)):
        check_mode(mode, config.model, beside)
    return config, weights
