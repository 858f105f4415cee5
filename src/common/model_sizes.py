"""Model sizes: the YAML files of `configs/`, one a size."""

import re
from pathlib import Path

import yaml

from src.common.errors import InputError, nearest

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


def modes() -> list[str]:
    """The model sizes that `--mode` knows: one YAML file each in `configs/`."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def mode_file(mode: str) -> Path:
    """The YAML file of a mode; `2.6b` finds `2.6B`, and so does `2B6`, as other tools write it.

    Raises:
        InputError: No such mode.
    """
    wanted = re.sub(r"^(\d+)b(\d)$", r"\1.\2b", mode.lower())
    for name in modes():
        if name.lower() == wanted:
            return CONFIG_DIR / f"{name}.yaml"
    raise InputError(f"--mode '{mode}' is none of {', '.join(modes())}{nearest(mode, modes())}")


def check_mode(mode: str, config: object, beside: Path) -> None:
    """A model's own settings hold, so a --mode beside them must mean the same network.

    Args:
        beside: The file of these settings.

    Raises:
        InputError: It doesn't.
    """
    named = yaml.safe_load(mode_file(mode).read_text())["model"]
    for name in ("hidden_size", "num_layers", "num_heads"):
        if getattr(config, name) != named[name]:
            raise InputError(
                f"--mode {mode} has {name} {named[name]}, but {beside.parent} was trained with "
                f"{getattr(config, name)}; leave --mode out"
            )
