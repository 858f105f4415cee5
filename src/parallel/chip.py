"""The kind of Ascend chip: which operators it has depends on it."""

import mindspore as ms

from src.common.errors import InputError
from src.common.settings import Chip, ParallelConfig

# Beginnings of MindSpore's names of chips, the longer ones first.
_KINDS: tuple[tuple[str, Chip], ...] = (("ascend910_93", "A3"), ("ascend910b", "A2"), ("ascend910", "910A"))


def settle_chip(config: ParallelConfig) -> None:
    """Ask the device for its kind, and put it in the place of `auto`. Call it after `prepare_device`.

    Raises:
        InputError: The settings name another kind than the device, or ask for an operator that it lacks.
    """
    if config.device_target != "Ascend":
        return
    found = chip_of(ms.context.MSContext.get_instance().get_ascend_soc_version())
    if config.chip not in ("auto", found):
        raise InputError(f"parallel.chip is {config.chip}, but the device is a {found}; leave parallel.chip out")
    if found == "910A" and config.attention == "flash":
        raise InputError(
            "parallel.attention flash is an operator of Ascend A2 and A3, but the device is a 910A; give auto"
        )
    config.chip = found


def chip_of(name: str) -> Chip:
    """Return the kind of a chip, from MindSpore's name of it.

    Raises:
        InputError: The name is none of a chip that trains.
    """
    for beginning, kind in _KINDS:
        if name.lower().startswith(beginning):
            return kind
    raise InputError(f"the device is an Ascend '{name}', which is none of {', '.join(k for _, k in _KINDS)}")
