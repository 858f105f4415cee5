"""Starts this machine's ranks of the distributed servable, and starts them anew when one is lost. See `--help`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving_increment.ranks import distributed_address, distributed_key
from src.common.cli import parse
from src.common.errors import USAGE_STATUS, InputError, run_program
from src.inference.manifest import Manifest
from src.parallel.launch.launcher import LaunchArguments, supervisor
from src.parallel.launch.supervisor import SIGNAL_STATUS, STOP_SIGNALS

MODELS = Path(__file__).resolve().parent / "models"
PAUSE_SECONDS = 1.0


@dataclass
class AgentConfig:
    """Run the slices that run_distribute_export.sh or run_cluster_export.sh wrote, one rank each. They connect to the
    servable at DISTRIBUTED_ADDRESS (127.0.0.1:6200), which must have the same DISTRIBUTED_KEY; both in the environment.

    Args:
        models: Folder of device0, device1, ...
        rank_table: Rank table of all devices; needed on several Ascend machines.
        rank_start: First rank of this machine; from the rank table, by this machine's address, when not given.
        local_device_num: Ranks of this machine; from the rank table, or all that are left, when not given.
        device_target: CPU, GPU or Ascend.
        scheduler_address: The machine of rank 0, where there are several and no rank table.
        scheduler_port: A port of it.
        log_dir: Folder of the folders device{rank} with the logs.
    """

    models: str = str(MODELS)
    rank_table: str = ""
    rank_start: int | None = None
    local_device_num: int | None = None
    device_target: Literal["CPU", "GPU", "Ascend"] = "Ascend"
    scheduler_address: str = ""
    scheduler_port: int | None = None
    log_dir: str = "."


def world_size(models: Path) -> int:
    """How many ranks the model was exported for.

    Raises:
        InputError: No slice is there.
    """
    slices = sorted(models.glob("device*/model.json"))
    if not slices:
        raise InputError(
            f"{models} holds no exported slices (device0/model.json): bash "
            "scripts/run_distribute_export.sh, then move device* there"
        )
    return Manifest.read_settings(slices[0].parent).world_size


def main() -> None:
    """Parse, then run the ranks until they are stopped."""
    config = parse(AgentConfig, "serving_agent.py")
    distributed_address(), distributed_key()  # what is wrong with them is told before anything starts
    size = world_size(Path(config.models))
    arguments = LaunchArguments(
        size,
        config.rank_table,
        config.rank_start,
        config.local_device_num,
        config.device_target,
        config.scheduler_address,
        config.scheduler_port,
        config.log_dir,
    )
    program = ["-m", "serving_increment.rank", str(Path(config.models).resolve()), config.device_target, str(size)]
    stopped = {0, USAGE_STATUS, *(SIGNAL_STATUS + number for number in STOP_SIGNALS)}
    while (status := supervisor(arguments, program).run()) not in stopped:
        print("the ranks start anew", flush=True)
        time.sleep(PAUSE_SECONDS)
    sys.exit(status)


if __name__ == "__main__":
    run_program(main)
