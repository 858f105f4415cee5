"""A model with slices in several processes, on one or more machines, as Serving's worker uses it.

The ranks (`serving_increment.rank`) connect to the worker. In each call all ranks get the same numbers, and the worker
takes the answer of the first one. Messages hold numbers and JSON, never pickled objects. Before, both sides prove that
they know the same key. This file runs in Serving's environment (Python 3.9) and in the ranks' own.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

import numpy as np

from src.common.errors import InputError
from src.inference.manifest import Manifest

DEFAULT_ADDRESS = "127.0.0.1:6200"
ANEW = "start anew"  # sent in place of a graph: the rank must restart, because its cache differs from the others'
LONGEST_MESSAGE = 1 << 30  # bytes
HELLO_SECONDS = 10.0  # time for a connected rank to send its number
CALL_SECONDS = 120.0  # time for all ranks to run a graph


class RanksError(Exception):
    """A rank is missing or was lost."""

    def __init__(self) -> None:
        super().__init__(
            "not all ranks of the model are available now, they may be restarting; try again in some seconds"
        )


def distributed_address() -> tuple[str, int]:
    """Return the address at which the worker listens for the ranks: DISTRIBUTED_ADDRESS, HOST:PORT.

    Raises:
        InputError: DISTRIBUTED_ADDRESS has another form.
    """
    given = os.environ.get("DISTRIBUTED_ADDRESS") or DEFAULT_ADDRESS
    host, _, port = given.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InputError(f"DISTRIBUTED_ADDRESS is '{given}'; it must look like {DEFAULT_ADDRESS}")
    return host, int(port)


def distributed_key() -> bytes:
    """Return the secret that worker and ranks share: DISTRIBUTED_KEY.

    Raises:
        InputError: DISTRIBUTED_KEY is not given.
    """
    key = os.environ.get("DISTRIBUTED_KEY", "")
    if not key:
        raise InputError(
            "DISTRIBUTED_KEY is not given: any secret of your own, the same on all machines (the start "
            "script makes one where DISTRIBUTED_ADDRESS is of this machine alone)"
        )
    return key.encode()


def slice_folder(models: Path, rank: int) -> Path:
    """Return the folder of a rank's slice: device0, or device_0 as the ModelZoo's documents name it."""
    named = models / f"device_{rank}"
    return named if named.is_dir() else models / f"device{rank}"


def identity(manifest: Manifest) -> dict[str, Any]:
    """Return what all slices of one export have in common."""
    common = asdict(manifest)
    del common["rank"], common["files"]
    return common


def send(connection: Connection, head: Any, *arrays: np.ndarray) -> None:
    """Send a JSON value and arrays."""
    connection.send_bytes(json.dumps([head, [[array.dtype.str, array.shape] for array in arrays]]).encode())
    for array in arrays:
        connection.send_bytes(np.ascontiguousarray(array).tobytes())


def receive(connection: Connection) -> tuple[Any, list[np.ndarray]]:
    """Receive what `send` sent.

    Raises:
        EOFError, OSError: The connection has ended.
    """
    head, shapes = json.loads(connection.recv_bytes(LONGEST_MESSAGE))
    return head, [
        np.frombuffer(connection.recv_bytes(LONGEST_MESSAGE), dtype).reshape(shape) for dtype, shape in shapes
    ]


class Ranks:
    """Runs graphs on all ranks of an exported model. Only one thread may call it at a time.

    If a rank is lost, the running call fails and all connections are closed. The ranks are accepted again when all have
    come back. Their caches are useless then, because the calls that used them have failed.

    Args:
        manifest: Manifest of the first rank's slice. The other slices must be of the same export.

    Raises:
        InputError: The address can't be listened on.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._identity = json.loads(json.dumps(identity(manifest)))
        self._world_size = manifest.world_size
        address = distributed_address()
        try:
            self._listener = Listener(address, authkey=distributed_key())
        except OSError as error:
            raise InputError(
                f"DISTRIBUTED_ADDRESS {address[0]}:{address[1]} can't be listened on ({error.strerror}); "
                "another server may be there, or it is no address of this machine"
            ) from error
        self._ranks: list[Connection] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="ranks", daemon=True).start()

    def __call__(self, kind: str, *inputs: np.ndarray) -> np.ndarray:
        """Run a graph on all ranks and return the first rank's result.

        Raises:
            RanksError: A rank is missing or was lost.
        """
        with self._lock:
            ranks = self._ranks
        if not ranks:
            raise RanksError
        try:
            for rank in ranks:
                send(rank, kind, *inputs)
            results: dict[Connection, list[np.ndarray]] = {}
            while len(results) < len(ranks):
                # Wait for all ranks: if one is lost, the others wait for it and send nothing.
                ready = wait([rank for rank in ranks if rank not in results], CALL_SECONDS)
                if not ready:
                    raise EOFError
                for rank in ready:
                    results[rank] = receive(rank)[1]
        except (EOFError, OSError) as error:
            with self._lock:
                self._give_up(ranks)
            raise RanksError from error
        return results[ranks[0]][0]

    def _give_up(self, ranks: list[Connection]) -> None:
        for rank in ranks:
            rank.close()
        if self._ranks is ranks:
            self._ranks = []

    def _accept(self) -> None:
        arrived: dict[int, tuple[Connection, int]] = {}
        while True:
            # A port scanner, or a client that leaves at once, is not a rank.
            with suppress(OSError, EOFError, ValueError, TypeError, AuthenticationError):
                connection = self._listener.accept()
                hello = self._welcome(connection)
                if hello is None:
                    connection.close()
                    continue
                number, calls = hello
                arrived[number] = connection, calls
                # A rank sends nothing unasked, so a readable connection has ended.
                arrived = {rank: one for rank, one in arrived.items() if not one[0].poll()}
            if len(arrived) == self._world_size:
                self._take([arrived[rank] for rank in range(self._world_size)])
                arrived = {}

    def _take(self, arrived: list[tuple[Connection, int]]) -> None:
        """Use these ranks. If some have run more graphs than others, their caches differ, and they must restart."""
        ranks = [connection for connection, _ in arrived]
        with self._lock:
            self._give_up(self._ranks)
            if len({calls for _, calls in arrived}) == 1:
                self._ranks = ranks
                return
        for rank in ranks:
            with suppress(OSError):
                send(rank, ANEW)
            rank.close()

    def _welcome(self, connection: Connection) -> tuple[int, int] | None:
        """Return the number of a connected rank and how many graphs it has run; None if it does not belong here."""
        if not connection.poll(HELLO_SECONDS):
            return None
        (number, calls, its_identity), _ = receive(connection)
        fits = its_identity == self._identity and number in range(self._world_size)
        send(connection, "" if fits else "its slice is of another export than the first rank's")
        return (number, calls) if fits else None
