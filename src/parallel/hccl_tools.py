"""Write the rank table of one machine, as the ModelZoo's tool of this name does.

    python -m src.parallel.hccl_tools --device_num "[0,8)" [--server_ip IP]

writes hccl_8p_01234567_{ip}.json in the current folder. Tables of several machines are joined by
`python -m src.parallel.merge_hccl`.
"""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.parallel.launch.rank_table import Device, RankTable, Server

HCCN_CONF = Path("/etc/hccn.conf")
GROUP = 4  # the devices of an Atlas machine are wired in groups of four


@dataclass
class HcclArguments:
    """Write this machine's rank table, hccl_{n}p_{devices}_{ip}.json, in the current folder.

    The devices' addresses come from the driver's /etc/hccn.conf.

    Args:
        device_num: Which devices, as "[0,8)": from the first number on, the second not counted. Half a group of four
            can only be with others of its group: [0,2) but not [3,6).
        visible_devices: What the machine's devices 0, 1, 2, ... really are, in a container that sees only some.
        server_ip: This machine's address, when its name does not resolve to the right one.
        dry_run: On a machine without Ascend devices, write a table all the same, to look at or to try launching.
        device_ips: With dry_run, the addresses of all visible devices; made up when not given.
    """

    device_num: str = "[0,8)"
    visible_devices: str = "0,1,2,3,4,5,6,7"
    server_ip: str = ""
    dry_run: bool = False
    device_ips: str = ""

    def __post_init__(self) -> None:
        if self.device_ips and not self.dry_run:
            raise InputError(f"--device_ips is for --dry_run; without it the addresses come from {HCCN_CONF}")


def devices_of(device_num: str, visible: int) -> range:
    """The devices of "[first,end)", of `visible` ones.

    Raises:
        InputError: It has another form, is outside, or cuts through groups of four.
    """
    numbers = re.fullmatch(r"\[\s*(\d+)\s*,\s*(\d+)\s*([)\]])", device_num.strip())
    if not numbers:
        raise InputError(
            f"--device_num '{device_num}' is not of the form \"[0,8)\": quoted, first number counted, second not"
        )
    first, end = int(numbers[1]), int(numbers[2])
    if numbers[3] == "]":
        raise InputError(
            f"--device_num '{device_num}': the end is not counted, so close it with ')': "
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
    """Device ids and their addresses, from lines `address_0=192.1.27.6`.

    Raises:
        InputError: It can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} can't be read ({error.strerror}): is this a machine with Ascend devices, whose "
            "addresses hccn_tool has set? Elsewhere, --dry_run writes a table to try"
        ) from error
    return dict(re.findall(r"^\s*address_(\d+)\s*=\s*(\S+)", text, re.MULTILINE))


def device_ips(arguments: HcclArguments, visible: list[str]) -> dict[str, str]:
    """The address of each device id."""
    if not arguments.dry_run:
        return read_hccn_conf(HCCN_CONF)
    given = (
        arguments.device_ips.split(",")
        if arguments.device_ips
        else [f"192.168.{100 + index % GROUP}.{101 + index // GROUP}" for index in range(len(visible))]
    )
    if len(given) != len(visible):
        raise InputError(f"--device_ips has {len(given)} addresses for {len(visible)} visible devices")
    return dict(zip(visible, given, strict=True))


def this_machine() -> str:
    """The address that this machine's name resolves to.

    Raises:
        InputError: None that other machines could know.
    """
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError as error:
        raise InputError(f"this machine's name {socket.gethostname()} has no address; give --server_ip") from error
    if address.startswith("127."):
        raise InputError(
            f"this machine's name {socket.gethostname()} stands for {address}, which elsewhere "
            "means another machine; give --server_ip"
        )
    return address


def rank_table(arguments: HcclArguments) -> tuple[RankTable, str]:
    """The table of this machine, and its file's name.

    Raises:
        InputError: Devices or addresses that can't be.
    """
    visible = [name.strip() for name in arguments.visible_devices.split(",")]
    if not all(name.isdigit() for name in visible):
        raise InputError(f"--visible_devices '{arguments.visible_devices}' is not of the form 0,1,2,3")
    numbers = devices_of(arguments.device_num, len(visible))
    addresses = device_ips(arguments, visible)
    server = arguments.server_ip or this_machine()
    devices = []
    for rank, number in enumerate(numbers):
        if visible[number] not in addresses:
            raise InputError(
                f"{HCCN_CONF} has no line address_{visible[number]}=..., the address of device "
                f"{visible[number]}: set it with hccn_tool"
            )
        devices.append(Device(int(visible[number]), addresses[visible[number]], rank))
    name = f"hccl_{len(devices)}p_{''.join(map(str, numbers))}_{server}.json"
    return RankTable((Server(server, tuple(devices), {"host_nic_ip": "reserve"}),), name), name


def main() -> None:
    """The command line."""
    table, name = rank_table(parse(HcclArguments, "python -m src.parallel.hccl_tools"))
    table.write(Path(name))
    for device in table.servers[0].devices:
        print(f"rank_id {device.rank_id}: device_id {device.device_id}, device_ip {device.device_ip}")
    print(f"written: {name}")


if __name__ == "__main__":
    run_program(main)
