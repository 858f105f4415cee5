"""A rank of a distributed servable: it runs its slice of the graphs when the worker asks.

serving_agent.py starts it by `src.parallel.launch.launcher`, as `python -m serving_increment.rank MODELS TARGET SIZE`.
"""

import os
import sys
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path

import numpy as np

from serving_increment.ranks import ANEW, distributed_address, distributed_key, identity, receive, send, slice_folder
from src.common.errors import InputError, run_program
from src.common.settings import ParallelConfig
from src.inference.mindir.runtime import MindirRuntime
from src.parallel.mesh import Mesh, connect, prepare_device
from src.parallel.plan.plan import Plan

ANEW_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the agent restarts the ranks
CONNECT_SECONDS = 600.0
RETRY_SECONDS = 0.5


def open_slice(folder: Path, mesh: Mesh) -> MindirRuntime:
    """Open this rank's graphs and run each of them once, so that no graph is compiled while the worker waits.

    Args:
        folder: Folder of the slice.
        mesh: The connected ranks.

    Raises:
        InputError: The folder holds the slice of another rank.
    """
    runtime = MindirRuntime(folder)
    manifest, size = runtime.manifest, mesh.plan.world_size
    if (manifest.rank, manifest.world_size) != (mesh.rank, size):
        raise InputError(
            f"{folder} holds slice {manifest.rank} of {manifest.world_size}, but this is rank {mesh.rank} "
            f"of {size}; move what run_distribute_export.sh wrote to models/ as it is"
        )
    mesh.group("tensor")  # creates the communication group that the graphs name
    for kind, shapes in manifest.graphs.items():
        runtime.call(kind, *(np.zeros(shape, np.int32) for shape in shapes))
    return runtime


def meet(runtime: MindirRuntime, calls: int) -> Connection:
    """Connect to the worker, and wait for it if it does not listen yet.

    Args:
        runtime: The slice.
        calls: Number of graphs that this rank has run.

    Raises:
        InputError: No worker listens, or it refuses this rank.
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
    """Load the slice, connect to the worker, and run its calls. If the worker ends, connect again."""
    models, device_target, world_size = sys.argv[1:]
    prepare_device(ParallelConfig(device_target=device_target))
    mesh = connect(Plan(tensor=int(world_size)))
    runtime = open_slice(slice_folder(Path(models), mesh.rank), mesh)
    calls = 0
    while True:
        connection = meet(runtime, calls)
        print(f"rank {mesh.rank}: ready", flush=True)
        with suppress(EOFError, OSError):  # the worker has ended; the slice stays loaded for the next one
            while True:
                kind, inputs = receive(connection)
                if kind == ANEW:
                    os._exit(ANEW_STATUS)  # a normal exit of MindSpore may wait for the other ranks
                result = runtime.call(kind, *inputs)
                calls += 1
                send(connection, kind, result[0] if isinstance(result, tuple) else result)


if __name__ == "__main__":
    run_program(main)
