"""The machine: chosen once, before anything is computed."""

import mindspore as ms

from src.common.errors import InputError
from src.common.settings import ParallelConfig

CALL_DEPTH = 100000  # MindSpore's default, 1000, is too little for the unrolled updates of a deep network


def prepare_device(config: ParallelConfig) -> None:
    """Select graph mode on the configured device.

    Raises:
        InputError: MindSpore here has no such device.
    """
    try:
        ms.set_context(mode=ms.GRAPH_MODE, device_target=config.device_target, max_call_depth=CALL_DEPTH)
        if config.device_target != "CPU":
            ms.set_device(config.device_target, config.device_id)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"parallel.device_target {config.device_target} (device {config.device_id}) is not available "
            f"to the MindSpore that is installed: {str(error).splitlines()[0]}; CPU always is"
        ) from error
