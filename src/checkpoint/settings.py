"""Parse command lines with --checkpoint, where the checkpoint brings settings of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from src.checkpoint.vocabulary import located
from src.common.cli import flag_value, parse
from src.common.model_sizes import check_mode, device_recipe, told_recipe
from src.pangu_alpha_config import RunConfig

Arguments = TypeVar("Arguments", bound=RunConfig)


def parse_with_checkpoint(
    arguments_class: type[Arguments], prog: str, arguments: Sequence[str]
) -> tuple[Arguments, Path | None]:
    """Parse a command line with --checkpoint. Flags override the settings that lie beside the checkpoint.

    Without settings beside it, the size of --mode has weights and products in half precision on an Ascend or GPU, as
    the ModelZoo loads a release. One line on stderr says so.

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
    halves = {} if beside else _half_precision(arguments)
    config = parse(arguments_class, prog, arguments, beside, after_mode={"model": halves})
    if kept := {name: dtype for name, dtype in halves.items() if getattr(config.model, name) == dtype}:
        print(told_recipe({"model": kept}), file=sys.stderr)
    if not flag_value("--data.tokenizer_path", arguments):  # nothing takes the place of what a user names
        config.data = located(config.data, beside)
    if beside and (mode := flag_value("--mode", arguments)):
        check_mode(mode, config.model, beside)
    return config, weights


def _half_precision(arguments: Sequence[str]) -> dict[str, object]:
    mode, device = flag_value("--mode", arguments), flag_value("--parallel.device_target", arguments)
    if not mode or device not in ("Ascend", "GPU"):
        return {}
    half = device_recipe(mode)["model"]["compute_dtype"]
    return {"compute_dtype": half, "param_init_dtype": half}
