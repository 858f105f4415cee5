"""Rank tables: the device and machine of each rank, as JSON in HCCL's formats 1.0 and 1.2.

{"version": "1.0", "server_count": "1", "status": "completed",
 "server_list": [{"server_id": "10.0.0.1", "host_nic_ip": "reserve",
                  "device": [{"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"}]}]}

Version 1.2 is for super pods. Its devices have a super_device_id, and need a device_ip only between super pods. A
server may have a name as server_id, and its address as host_ip. super_pod_list has the servers of each super pod:

{"version": "1.2", ..., "super_pod_list": [{"super_pod_id": "0", "server_list": [{"server_id": "node_0"}]}]}
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.common.checks import require
from src.common.errors import InputError
from src.common.files import write_text
from src.common.reading import parse_json

PLAIN, SUPER_PODS = "1.0", "1.2"  # versions
COMPLETED = "completed"


@dataclass(frozen=True)
class Device:
    """One device of a machine.

    Args:
        device_id: Number of the device on its machine.
        device_ip: IP address of the device's own network card; empty if a table of version 1.2 has none.
        rank_id: Rank that runs on the device.
        others: Further fields of the file. They are not interpreted, and written back unchanged.
    """

    device_id: int
    device_ip: str
    rank_id: int
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """One machine.

    Args:
        server_id: IP address of the machine, or another name if there is a host_ip.
        devices: Devices of the machine.
        others: Further fields of the file. They are written back unchanged.
    """

    server_id: str
    devices: tuple[Device, ...]
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """IP address of the machine."""
        return str(self.others.get("host_ip") or self.server_id)


@dataclass(frozen=True)
class RankTable:
    """A consistent rank table: it has the ranks 0 to n - 1, and each device once.

    Args:
        servers: The machines.
        name: Name in error messages, such as "rank table FILE".
        super_pods: The server_id of the machines of each super pod, by super_pod_id; None for a table of version 1.0.

    Raises:
        InputError: The table is inconsistent. The message names the table, the field and the rank.
    """

    servers: tuple[Server, ...]
    name: str
    super_pods: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        ids = [server.server_id for server in self.servers]
        for server_id in ids:
            require(
                ids.count(server_id) == 1,
                f"{self.name}: server_list names {server_id} twice; give each machine one entry",
            )
        if self.super_pods is not None:
            in_pods = [server_id for pod in self.super_pods.values() for server_id in pod]
            for server_id in {*ids, *in_pods}:
                require(
                    in_pods.count(server_id) == 1 == ids.count(server_id),
                    f"{self.name}: {server_id} is in {in_pods.count(server_id)} super pods of super_pod_list, and "
                    f"{ids.count(server_id)} times in server_list; it must be once in both",
                )
        places = self._places()
        ranks: dict[int, str] = {}
        for server, device in places:
            place = f"device {device.device_id} of {server.server_id}"
            rank = device.rank_id
            require(
                place not in ranks.values(), f"{self.name}: {place} is listed twice (second time as rank_id {rank})"
            )
            require(
                rank not in ranks, f"{self.name}: rank_id {rank} is given twice, to {ranks.get(rank)} and to {place}"
            )
            require(
                0 <= rank < len(places),
                f"{self.name}: rank_id {rank} of {place} is outside 0 to {len(places) - 1}, the ranks of its "
                f"{len(places)} devices",
            )
            ranks[rank] = place

    def _places(self) -> list[tuple[Server, Device]]:
        return [(server, device) for server in self.servers for device in server.devices]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._places())

    def place(self, rank: int) -> tuple[Server, Device]:
        """Return machine and device of a rank from 0 to `size` - 1."""
        return next(place for place in self._places() if place[1].rank_id == rank)

    def check_size(self, rank_size: int) -> None:
        """Check that the table has as many ranks as the run.

        Raises:
            InputError: The table has more or fewer ranks.
        """
        require(
            self.size == rank_size,
            f"{self.name} lists {self.size} devices (rank_id 0 to {self.size - 1}), but the run has {rank_size} ranks",
        )

    def devices_of(self, ranks: range) -> list[Device]:
        """Return the devices of consecutive ranks of one machine, in the order of the ranks.

        Raises:
            InputError: The table lacks a rank, or the ranks are on several machines.
        """
        require(ranks.stop <= self.size, f"{self.name} has no rank_id {ranks.stop - 1}, only 0 to {self.size - 1}")
        places = [self.place(rank) for rank in ranks]
        machines = sorted({server.server_id for server, _ in places})
        require(
            len(machines) == 1,
            f"{self.name}: ranks {ranks.start} to {ranks.stop - 1} are on {len(machines)} machines "
            f"({', '.join(machines)}); each machine starts its own ranks",
        )
        return [device for _, device in places]

    def ranks_here(self) -> range:
        """Return the ranks of this machine.

        This machine is the one whose host_ip or server_id is an address of this machine, or the only one of the table.

        Raises:
            InputError: No machine or several machines of the table have an address of this machine, or the ranks are
                not consecutive.
        """
        here = [server for server in self.servers if len(self.servers) == 1 or is_local(server.address)]
        if len(here) != 1:
            ids = ", ".join(server.address for server in here or self.servers)
            raise InputError(
                f"{self.name}: this machine has {len(here)} of the addresses in server_list ({ids}); give "
                "--rank_start and --local_device_num"
            )
        ranks = sorted(device.rank_id for device in here[0].devices)
        if ranks != list(range(ranks[0], ranks[0] + len(ranks))):
            raise InputError(f"{self.name}: the ranks of {here[0].server_id} are not consecutive: {ranks}")
        return range(ranks[0], ranks[0] + len(ranks))

    def write(self, path: Path) -> None:
        """Write the table as JSON, whole or not at all.

        Raises:
            InputError: The file cannot be written.
        """
        servers = [
            {
                "server_id": server.server_id,
                "device": [
                    {
                        "device_id": str(device.device_id),
                        **({"device_ip": device.device_ip} if device.device_ip else {}),
                        "rank_id": str(device.rank_id),
                        **device.others,
                    }
                    for device in server.devices
                ],
                **server.others,
            }
            for server in self.servers
        ]
        table = {"version": PLAIN, "server_count": str(len(servers)), "server_list": servers, "status": COMPLETED}
        if self.super_pods is not None:
            pods = [
                {"super_pod_id": pod, "server_list": [{"server_id": server_id} for server_id in ids]}
                for pod, ids in self.super_pods.items()
            ]
            table |= {"version": SUPER_PODS, "super_pod_list": pods}
        try:
            write_text(path, json.dumps(table, indent=4) + "\n")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read(path: Path) -> RankTable:
    """Read a rank table.

    Raises:
        InputError: The file cannot be read, a field is missing or wrong, or the table is inconsistent.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"rank table {path} can't be read: {error.strerror}; `python -m src.parallel.hccl_tools` writes one"
        ) from error
    table = parse_json(text, f"rank table {path}")
    require(
        not isinstance(table, dict) or "group_list" not in table,
        f"rank table {path} has HCCL's old format (group_list); only server_list can be used: make a table on each "
        "machine (python -m src.parallel.hccl_tools), and one of all (python -m src.parallel.merge_hccl)",
    )
    fields = _Fields(table, f"rank table {path}")
    for name, allowed in (("version", (PLAIN, SUPER_PODS)), ("status", (COMPLETED,))):
        found = fields.text(name)
        wanted = " or ".join(f"'{value}'" for value in allowed)
        require(found in allowed, f"rank table {path}: {name} is '{found}'; only {wanted} can be used")
    pods = _super_pods(fields) if fields.text("version") == SUPER_PODS else None
    servers = tuple(_server(entry, pods is not None) for entry in fields.entries("server_list"))
    count = fields.number("server_count")
    require(count == len(servers), f"rank table {path}: server_count is {count}, but server_list has {len(servers)}")
    return RankTable(servers, f"rank table {path}", pods)


def _super_pods(fields: "_Fields") -> dict[str, tuple[str, ...]]:
    pods = [
        (pod.text("super_pod_id"), tuple(server.text("server_id") for server in pod.entries("server_list")))
        for pod in fields.entries("super_pod_list")
    ]
    names = [name for name, _ in pods]
    for name in names:
        require(names.count(name) == 1, f"{fields.table}: super_pod_list names super pod {name} twice")
    return dict(pods)


def _server(fields: "_Fields", in_super_pod: bool) -> Server:
    devices = tuple(_device(entry, in_super_pod) for entry in fields.entries("device"))
    return Server(fields.text("server_id"), devices, fields.others("server_id", "device"))


def _device(fields: "_Fields", in_super_pod: bool) -> Device:
    if in_super_pod:
        fields.text("super_device_id")
    has_address = not in_super_pod or "device_ip" in fields.values
    return Device(
        fields.number("device_id"),
        fields.text("device_ip") if has_address else "",
        fields.number("rank_id"),
        fields.others("device_id", "device_ip", "rank_id"),
    )


@dataclass(frozen=True)
class _Fields:
    """A JSON object inside a table. Its errors name the table, the place in the table and the rank."""

    values: Any
    table: str
    place: str = ""

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self._wrong(name, f"is {json.dumps(value)}; it must be a string")
        return str(value)

    def number(self, name: str) -> int:
        value = self.text(name)
        if not (value.isascii() and value.isdigit()):
            raise self._wrong(name, f"is '{value}'; it must be a whole number")
        return int(value)

    def entries(self, name: str) -> list["_Fields"]:
        value = self._value(name)
        if not isinstance(value, list) or not value:
            raise self._wrong(name, "must be a list that is not empty")
        return [_Fields(entry, self.table, f"{self.place}{name}[{index}].") for index, entry in enumerate(value)]

    def others(self, *names: str) -> dict[str, Any]:
        return {name: value for name, value in self.values.items() if name not in names}

    def _value(self, name: str) -> object:
        if not isinstance(self.values, dict) or name not in self.values:
            raise self._wrong(name, "is missing")
        return self.values[name]

    def _wrong(self, name: str, problem: str) -> InputError:
        rank = self.values.get("rank_id") if isinstance(self.values, dict) else None
        return InputError(f"{self.table}: {self.place}{name} {problem}" + (f" (rank_id {rank})" if rank else ""))


def merge(tables: list[RankTable], name: str) -> RankTable:
    """Merge tables into one. Machines keep the given order, and ranks are renumbered in that order.

    If several tables list devices of the same machine, the result has one entry for that machine. The same holds for
    super pods.

    Raises:
        InputError: Two tables list the same device, or the tables have different versions.
    """
    plain = [table for table in tables if table.super_pods is None]
    if plain and len(plain) < len(tables):
        other = next(table for table in tables if table.super_pods is not None)
        raise InputError(f"{plain[0].name} has version {PLAIN}, and {other.name} {SUPER_PODS}; make all of one version")
    pods: dict[str, dict[str, None]] = {}
    holders: dict[tuple[str, int], str] = {}
    servers: dict[str, Server] = {}
    for table in tables:
        for pod, ids in (table.super_pods or {}).items():
            pods.setdefault(pod, {}).update(dict.fromkeys(ids))
        for server in table.servers:
            for device in server.devices:
                key = (server.server_id, device.device_id)
                require(
                    key not in holders,
                    f"device {device.device_id} of {server.server_id} is in {holders.get(key)} and in {table.name} "
                    f"(rank_id {device.rank_id}); each device belongs in one table",
                )
                holders[key] = table.name
            known = servers.get(server.server_id, replace(server, devices=()))
            in_order = sorted(server.devices, key=lambda device: device.rank_id)
            servers[server.server_id] = replace(known, devices=(*known.devices, *in_order))
    merged, ranks = [], 0
    for server in servers.values():
        devices = tuple(replace(device, rank_id=ranks + index) for index, device in enumerate(server.devices))
        merged.append(replace(server, devices=devices))
        ranks += len(devices)
    return RankTable(tuple(merged), name, None if plain else {pod: tuple(ids) for pod, ids in pods.items()})


def is_local(address: str) -> bool:
    """Return whether an address is this machine's, by binding a socket to it."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True
