"""Rank tables: which rank is which device of which machine, as JSON in HCCL's format 1.0.

{"version": "1.0", "server_count": "1", "status": "completed",
 "server_list": [{"server_id": "10.0.0.1", "host_nic_ip": "reserve",
                  "device": [{"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"}]}]}
"""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from src.common.errors import InputError

VERSION, COMPLETED = "1.0", "completed"


@dataclass(frozen=True)
class Device:
    """One device of a machine.

    Args:
        device_id: Its number on the machine.
        device_ip: Of its own network card.
        rank_id: The rank that runs on it.
        others: Fields of the file that are not read here, and written again as they were.
    """

    device_id: int
    device_ip: str
    rank_id: int
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """One machine.

    Args:
        server_id: Its IP address.
        devices: Its devices.
        others: Fields of the file that are not read here, and written again as they were.
    """

    server_id: str
    devices: tuple[Device, ...]
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RankTable:
    """A rank table that holds together: ranks 0 to n - 1, each device once.

    Args:
        servers: The machines.
        name: What errors call it: its file.

    Raises:
        InputError: It doesn't; the line names the table, the field and the rank.
    """

    servers: tuple[Server, ...]
    name: str

    def __post_init__(self) -> None:
        ids = [server.server_id for server in self.servers]
        for server_id in ids:
            if ids.count(server_id) > 1:
                raise InputError(f"{self.name}: server_list names {server_id} twice; one entry a machine")
        places = self._places()
        ranks: dict[int, str] = {}
        for server, device in places:
            place = f"device {device.device_id} of {server.server_id}"
            if place in ranks.values():
                raise InputError(f"{self.name}: {place} is there twice (rank_id {device.rank_id} is the second)")
            if device.rank_id in ranks:
                raise InputError(
                    f"{self.name}: rank_id {device.rank_id} is given twice, to {ranks[device.rank_id]} and to {place}"
                )
            if not 0 <= device.rank_id < len(places):
                raise InputError(
                    f"{self.name}: rank_id {device.rank_id} of {place} is outside 0 to "
                    f"{len(places) - 1}, the ranks of its {len(places)} devices"
                )
            ranks[device.rank_id] = place

    def _places(self) -> list[tuple[Server, Device]]:
        return [(server, device) for server in self.servers for device in server.devices]

    @property
    def size(self) -> int:
        """Its ranks."""
        return len(self._places())

    def place(self, rank: int) -> tuple[Server, Device]:
        """Where a rank of 0 to `size` - 1 runs."""
        return next(place for place in self._places() if place[1].rank_id == rank)

    def check_size(self, rank_size: int) -> None:
        """Refuse it for a run of another size.

        Raises:
            InputError: It has more or fewer ranks.
        """
        if self.size != rank_size:
            raise InputError(
                f"{self.name} lists {self.size} devices (rank_id 0 to {self.size - 1}), but the run has "
                f"{rank_size} ranks"
            )

    def devices_of(self, ranks: range) -> list[Device]:
        """The devices of some ranks of one machine, in the order of the ranks.

        Raises:
            InputError: There is no such rank, or they are on several machines.
        """
        if ranks.stop > self.size:
            raise InputError(f"{self.name} has no rank_id {ranks.stop - 1}, only 0 to {self.size - 1}")
        places = [self.place(rank) for rank in ranks]
        machines = sorted({server.server_id for server, _ in places})
        if len(machines) > 1:
            raise InputError(
                f"{self.name}: ranks {ranks.start} to {ranks.stop - 1} are on {len(machines)} machines "
                f"({', '.join(machines)}); each machine starts its own"
            )
        return [device for _, device in places]

    def ranks_here(self) -> range:
        """The ranks of this machine, which is the one with an address of the table.

        Raises:
            InputError: It has none or several of them, or its ranks are not consecutive.
        """
        here = [server for server in self.servers if len(self.servers) == 1 or is_local(server.server_id)]
        if len(here) != 1:
            ids = ", ".join(server.server_id for server in here or self.servers)
            raise InputError(
                f"{self.name}: this machine has {len(here)} of the addresses in server_list ({ids}); give "
                "--rank_start and --local_device_num"
            )
        ranks = sorted(device.rank_id for device in here[0].devices)
        if ranks != list(range(ranks[0], ranks[0] + len(ranks))):
            raise InputError(f"{self.name}: the ranks of {here[0].server_id} are not consecutive: {ranks}")
        return range(ranks[0], ranks[0] + len(ranks))

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            InputError: The folder can't be written in.
        """
        servers = [
            {
                "server_id": server.server_id,
                "device": [
                    {
                        "device_id": str(device.device_id),
                        "device_ip": device.device_ip,
                        "rank_id": str(device.rank_id),
                        **device.others,
                    }
                    for device in server.devices
                ],
                **server.others,
            }
            for server in self.servers
        ]
        table = {"version": VERSION, "server_count": str(len(servers)), "server_list": servers, "status": COMPLETED}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(table, indent=4) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise InputError(f"{path} cannot be written: {error.strerror}") from error


def read(path: Path) -> RankTable:
    """The rank table in a file.

    Raises:
        InputError: It can't be read, a field is missing or wrong, or it does not hold together.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"rank table {path} can't be read: {error.strerror}; `python -m src.parallel.hccl_tools` writes one"
        ) from error
    except ValueError as error:
        raise InputError(f"rank table {path} is not JSON: {error}") from error
    fields = _Fields(table, f"rank table {path}")
    for name, wanted in (("version", VERSION), ("status", COMPLETED)):
        if fields.text(name) != wanted:
            raise InputError(f"rank table {path}: {name} is '{fields.text(name)}'; only '{wanted}' can be used")
    servers = tuple(_server(entry) for entry in fields.entries("server_list"))
    if fields.number("server_count") != len(servers):
        raise InputError(
            f"rank table {path}: server_count is {fields.number('server_count')}, but server_list has {len(servers)}"
        )
    return RankTable(servers, f"rank table {path}")


def _server(fields: "_Fields") -> Server:
    devices = tuple(
        Device(
            entry.number("device_id"),
            entry.text("device_ip"),
            entry.number("rank_id"),
            entry.others("device_id", "device_ip", "rank_id"),
        )
        for entry in fields.entries("device")
    )
    return Server(fields.text("server_id"), devices, fields.others("server_id", "device"))


@dataclass(frozen=True)
class _Fields:
    """A JSON object somewhere in a table, whose errors name the table, the place and the rank."""

    values: Any
    table: str
    place: str = ""

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self._wrong(name, f"is {json.dumps(value)}; it must be a text")
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
    """One table of several: machines in the order given, ranks numbered anew in that order.

    Devices of one machine that are in several tables become one entry.

    Raises:
        InputError: Two tables hold the same device.
    """
    holders: dict[tuple[str, int], str] = {}
    servers: dict[str, Server] = {}
    for table in tables:
        for server in table.servers:
            for device in server.devices:
                key = (server.server_id, device.device_id)
                if key in holders:
                    raise InputError(
                        f"device {device.device_id} of {server.server_id} is in {holders[key]} and in "
                        f"{table.name} (rank_id {device.rank_id}); each device can be in one"
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
    return RankTable(tuple(merged), name)


def is_local(address: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True
