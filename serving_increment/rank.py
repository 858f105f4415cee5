"""A rank of a distributed servable: runs its slice of the graphs when the worker asks. serving_agent.py starts it, as
`python -m serving_increment.rank device0` within the ranks of `src.parallel.launch.launcher`.
"""

import os
import sys
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path

import numpy as np

from serving_increment.ranks import ANEW, distributed_address, distributed_key, identity, receive, send
from src.common.errors import InputError, run_program
from src.common.settings import ParallelConfig
from src.inference.mindir.runtime import MindirRuntime
from src.parallel.mesh import Mesh, connect, prepare_device
from src.parallel.plan.plan import Plan

ANEW_STATUS = 75  # sysexits.h, EX_TEMPFAIL: to be tried again
CONNECT_SECONDS = 600.0
RETRY_SECONDS = 0.5


def open_slice(folder: Path, mesh: Mesh) -> MindirRuntime:
    """This rank's graphs, each of them run once, since ranks that compile while others wait try their patience.

    Raises:
        InputError: The folder is not of this rank.
    """
    runtime = MindirRuntime(folder)
    manifest, size = runtime.manifest, mesh.plan.world_size
    if (manifest.rank, manifest.world_size) != (mesh.rank, size):
        raise InputError(
            f"{folder} holds slice {manifest.rank} of {manifest.world_size}, but this is rank {mesh.rank} "
            f"of {size}; move what run_distribute_export.sh wrote to models/ as it is"
        )
    mesh.group("tensor")  # which the graphs name
    for kind, shapes in manifest.graphs.items():
        runtime.call(kind, *(np.zeros(shape, np.int32) for shape in shapes))
    return runtime


def meet(runtime: MindirRuntime, calls: int) -> Connection:
    """The connection to the worker, which may not listen yet.

    Raises:
        InputError: Nobody is there, or it wants no such rank.
    """
    address, deadline = distributed_address(), time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection = Client(address, authkey=distributed_key())
            send(connection, [runtime.manifest.rank, calls, identity(runtime.manifest)])
            refused, _ = receive(connection)
            if refused:
                raise InputError(f"{runtime.folder}: {refused}; export all slices again, together")
            return connection
        except AuthenticationError as error:
            raise InputError(f"the servable at {address[0]}:{address[1]} has another DISTRIBUTED_KEY") from error
        except (OSError, EOFError) as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"no servable at DISTRIBUTED_ADDRESS {address[0]}:{address[1]} within "
                    f"{CONNECT_SECONDS:g} seconds ({error})"
                ) from error
            time.sleep(RETRY_SECONDS)


def main() -> None:
    """Load the slice, meet the worker, answer its calls."""
    models, device_target, world_size = sys.argv[1:]
    prepare_device(ParallelConfig(device_target=device_target))
    mesh = connect(Plan(tensor=int(world_size)))
    runtime = open_slice(Path(models) / f"device{mesh.rank}", mesh)
    calls = 0
    while True:
        connection = meet(runtime, calls)
        print(f"rank {mesh.rank}: ready", flush=True)
        with suppress(EOFError, OSError):  # the worker has gone: the next one will find the slice loaded
            while True:
                kind, inputs = receive(connection)
                if kind == ANEW:
                    os._exit(ANEW_STATUS)  # MindSpore's own way out may wait for the other ranks
                result = runtime.call(kind, *inputs)
                calls += 1
                send(connection, kind, result[0] if isinstance(result, tuple) else result)


if __name__ == "__main__":
    run_program(main)
