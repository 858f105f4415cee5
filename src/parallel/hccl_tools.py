"""Write the rank table of one machine, like the ModelZoo's tool of this name.

    python -m src.parallel.hccl_tools --device_num "[0,8)" [--server_ip IP]

writes hccl_8p_01234567_{ip}.json in the current folder. `python -m src.parallel.merge_hccl` merges the tables of
several machines.
"""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from src.common.checks import require
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.parallel.launch.rank_table import Device, RankTable, Server

HCCN_CONF = Path("/etc/hccn.conf")
GROUP = 4  # an Atlas machine connects its devices in groups of four


@dataclass
class HcclArguments:
    """Write this machine's rank table, hccl_{n}p_{devices}_{ip}.json, in the current folder.

    The devices' addresses come from the driver's file /etc/hccn.conf.

    Args:
        device_num: Range of devices in the form "[0,8)": the first number is included, the second is not. The range
            must consist of whole groups of four devices or lie inside one group: [0,2) is valid, [3,6) is not.
        visible_devices: Real numbers of devices 0, 1, 2, ..., for a container that sees only some devices.
        server_ip: IP address of this machine. Needed if its host name resolves to another address.
        dry_run: Write a table on a machine without Ascend devices, to look at it or to try the launcher.
        device_ips: IP addresses of all visible devices, separated by commas. Only valid with dry_run; by default they
            are made up.
    """

    device_num: str = "[0,8)"
    visible_devices: str = "0,1,2,3,4,5,6,7"
    server_ip: str = ""
    dry_run: bool = False
    device_ips: str = ""

    def __post_init__(self) -> None:
        require(
            not self.device_ips or self.dry_run,
            f"--device_ips is for --dry_run; without it the addresses come from {HCCN_CONF}",
        )


def devices_of(device_num: str, visible: int) -> range:
    """Parse a range of devices, "[first,end)".

    Args:
        device_num: The text.
        visible: Number of visible devices.

    Raises:
        InputError: The text has another form, the range exceeds the visible devices, or it splits groups of four.
    """
    numbers = re.fullmatch(r"\[\s*(\d+)\s*,\s*(\d+)\s*([)\]])", device_num.strip())
    if not numbers:
        raise InputError(
            f"--device_num '{device_num}' is not of the form \"[0,8)\": quoted, first number included, second not"
        )
    first, end = int(numbers[1]), int(numbers[2])
    if numbers[3] == "]":
        raise InputError(
            f"--device_num '{device_num}': the end is not included, so close it with ')': "
            f'"[{first},{end})" for devices {first} to {end - 1}'
        )
    if not first < end <= visible:
        raise InputError(f"--device_num '{device_num}' must go up, and end at {visible}, the visible devices, at most")
    if first // GROUP != (end - 1) // GROUP and (first % GROUP or end % GROUP):
        raise InputError(
            f"--device_num '{device_num}' cuts through groups of {GROUP} devices; take whole groups, or devices of one"
        )
    return range(first, end)


def read_hccn_conf(path: Path) -> dict[str, str]:
    """Return the address of each device id, from lines such as `address_0=192.1.27.6`.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} can't be read ({error.strerror}): on a machine with Ascend devices, set their addresses with "
            "hccn_tool; on another machine, --dry_run writes a table for a try"
        ) from error
    return dict(re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)", text, re.MULTILINE))


def device_ips(arguments: HcclArguments, visible: list[str]) -> dict[str, str]:
    """Return the address of each device id."""
    if not arguments.dry_run:
        return read_hccn_conf(HCCN_CONF)
    given = (
        arguments.device_ips.split(",")
        if arguments.device_ips
        else [f"192.168.{100 + index % GROUP}.{101 + index // GROUP}" for index in range(len(visible))]
    )
    require(len(given) == len(visible), f"--device_ips has {len(given)} addresses for {len(visible)} visible devices")
    return dict(zip(visible, given, strict=True))


def this_machine() -> str:
    """Return the address to which this machine's name resolves.

    Raises:
        InputError: The name does not resolve, or resolves to an address that other machines cannot use.
    """
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise InputError(f"this machine's name {socket.gethostname()} has no address; give --server_ip") from error
    require(
        not address.startswith("127."),
        f"this machine's name {socket.gethostname()} resolves to {address}, which other machines cannot use; give "
        "--server_ip",
    )
    return address


def rank_table(arguments: HcclArguments) -> tuple[RankTable, str]:
    """Return the rank table of this machine and the name of its file.

    Raises:
        InputError: The devices or addresses are impossible.
    """
    visible = [name.strip() for name in arguments.visible_devices.split(",")]
    require(
        all(name.isdigit() for name in visible),
        f"--visible_devices '{arguments.visible_devices}' is not of the form 0,1,2,3",
    )
    numbers = devices_of(arguments.device_num, len(visible))
    addresses = device_ips(arguments, visible)
    server = arguments.server_ip or this_machine()
    devices = []
    for rank, number in enumerate(numbers):
        device = visible[number]
        require(
            device in addresses,
            f"{HCCN_CONF} has no line address_{device}=..., the address of device {device}: set it with hccn_tool",
        )
        devices.append(Device(int(device), addresses[device], rank))
    name = f"hccl_{len(devices)}p_{''.join(map(str, numbers))}_{server}.json"
    return RankTable((Server(server, tuple(devices), {"host_nic_ip": "reserve"}),), name), name


def main() -> None:
    """Run the command line."""
    table, name = rank_table(parse(HcclArguments, "python -m src.parallel.hccl_tools"))
    table.write(Path(name))
    for device in table.servers[0].devices:
        print(f"rank_id {device.rank_id}: device_id {device.device_id}, device_ip {device.device_ip}")
    print(f"written: {name}")


if __name__ == "__main__":
    run_program(main)
