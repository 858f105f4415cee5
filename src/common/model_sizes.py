"""Model sizes for `--mode`: `configs/` has one YAML file for each."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from src.common.errors import InputError, nearest

DEVICE = "device"  # group of a file in configs/
CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


def modes() -> list[str]:
    """Return the names of all model sizes."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def mode_file(mode: str) -> Path:
    """Return the YAML file of a model size. `2.6b` and `2B6`, a spelling of other tools, both find `2.6B`.

    Raises:
        InputError: There is no such size.
    """
    wanted = re.sub(r"^(\d+)b(\d)$", r"\1.\2b", mode.lower())
    for name in modes():
        if name.lower() == wanted:
            return CONFIG_DIR / f"{name}.yaml"
    raise InputError(f"--mode '{mode}' is none of {', '.join(modes())}{nearest(mode, modes())}")


def mode_settings(mode: str) -> str:
    """Return the settings of a model size as YAML, without the group `device`.

    Raises:
        InputError: There is no such size.
    """
    settings = yaml.safe_load(mode_file(mode).read_text(encoding="utf-8"))
    settings.pop(DEVICE, None)
    return yaml.safe_dump(settings)


def device_recipe(mode: str) -> dict[str, dict[str, object]]:
    """Return the settings with which a model size is trained on a device, by group: the group `device` of its file.

    Raises:
        InputError: There is no such size.
    """
    return yaml.safe_load(mode_file(mode).read_text(encoding="utf-8")).get(DEVICE, {})


def told_recipe(recipe: Mapping[str, Mapping[str, object]]) -> str:
    """Return the line that says what a device recipe sets, unless flags or --config say otherwise."""
    settings = [
        f"{group}.{name} {str(value).lower() if isinstance(value, bool) else value}"
        for group, values in recipe.items()
        for name, value in values.items()
    ]
    return f"on a device this --mode has {', '.join(settings)}; flags win"


def check_mode(mode: str, config: object, beside: Path) -> None:
    """Check that a --mode names the size of a model that has its own settings.

    Args:
        mode: Name of the size.
        config: The model's settings, a PanguAlphaConfig.
        beside: File from which these settings were read.

    Raises:
        InputError: The sizes differ.
    """
    named = yaml.safe_load(mode_file(mode).read_text())["model"]
    for name in ("hidden_size", "num_layers", "num_heads"):
        if getattr(config, name) != named[name]:
            raise InputError(
                f"--mode {mode} has {name} {named[name]}, but {beside.parent} was trained with "
                f"{getattr(config, name)}; leave --mode out"
            )
