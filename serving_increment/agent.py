"""Starts this machine's ranks of the distributed servable, and restarts them when one is lost."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving_increment.ranks import distributed_address, distributed_key
from src.common.cli import parse
from src.common.errors import USAGE_STATUS, InputError
from src.inference.manifest import Manifest
from src.parallel.launch.launcher import LaunchArguments, supervisor
from src.parallel.launch.supervisor import SIGNAL_STATUS, STOP_SIGNALS

MODELS = Path(__file__).resolve().parent / "pangu_distributed/models"
PAUSE_SECONDS = 1.0


@dataclass
class AgentConfig:
    """Run the slices that run_distribute_export.sh or run_cluster_export.sh wrote, one rank for each slice.

    The ranks connect to the servable at DISTRIBUTED_ADDRESS (127.0.0.1:6200), which must have the same DISTRIBUTED_KEY.
    Both are environment variables.

    Args:
        models: Folder of device0, device1, ...
        rank_table: Rank table of all devices; needed on several Ascend machines. Default: RANK_TABLE of the
            environment, or pangu_distributed/hccl_*p.json if it exists.
        rank_start: First rank of this machine. Default: from the rank table, by the address of this machine.
        local_device_num: Number of ranks on this machine. Default: from the rank table, or all remaining ranks.
        device_target: CPU, GPU or Ascend.
        scheduler_address: Address of the machine of rank 0, if there are several machines and no rank table.
        scheduler_port: Port on that machine.
        log_dir: Folder for the folders device{rank} with the logs.
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
    """Return the number of slices that the model was exported to.

    Raises:
        InputError: The folder holds no slice.
    """
    slices = sorted(models.glob("device*/model.json"))
    if not slices:
        raise InputError(
            f"{models} holds no exported slices (device0/model.json): bash "
            "scripts/run_distribute_export.sh, then move device* there"
        )
    return Manifest.read_settings(slices[0].parent).world_size


def find_rank_table(given: str) -> str:
    """Return the path of the rank table: the given one, or its default as AgentConfig says; empty if there is none."""
    return given or os.environ.get("RANK_TABLE") or next(map(str, sorted(MODELS.parent.glob("hccl_*p.json"))), "")


def main() -> None:
    """Run the ranks until they are stopped."""
    config = parse(AgentConfig, "serving_agent.py")
    distributed_address(), distributed_key()  # report errors in them before anything starts
    size = world_size(Path(config.models))
    arguments = LaunchArguments(
        size,
        find_rank_table(config.rank_table),
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
        print("the ranks restart", flush=True)
        time.sleep(PAUSE_SECONDS)
    sys.exit(status)
