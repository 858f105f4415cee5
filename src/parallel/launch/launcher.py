"""Start this machine's ranks of a run as processes, and stop them together.

    python -m src.parallel.launch --rank_size 4 -- train.py --mode tiny --parallel.tensor 2 ...

On Ascend with a rank table, each rank gets RANK_TABLE_FILE, RANK_ID and DEVICE_ID. Otherwise the ranks form MindSpore's
dynamic cluster, which needs a scheduler process beside rank 0: the variables are those that MindSpore's msrun sets.
msrun itself is not used: it leaves its ranks behind when it is killed, kills them without a chance to save, and waits
for ever for a scheduler that hangs.

Rank r's output is in device{r}/log{r}.log, anew each time; that of the first rank here is also on the terminal.
"""

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.common.cli import parse
from src.common.errors import InputError
from src.parallel.launch.rank_table import RankTable, is_local, read
from src.parallel.launch.supervisor import Member, Supervisor, die_with

PROG = "python -m src.parallel.launch"
LOCALHOST = "127.0.0.1"
DEFAULT_PORT = 8118  # MindSpore's own, where other machines must know it
# What other launchers set: left over, it would contradict what is set here.
LAUNCH_VARIABLES = (
    "MS_ROLE",
    "MS_WORKER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_NODE_ID",
    "RANK_TABLE_FILE",
    "RANK_SIZE",
    "RANK_ID",
    "DEVICE_ID",
)
MPI_RANK, MPI_LOCAL_RANK, MPI_SIZE = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"


@dataclass
class LaunchArguments:
    """Start ranks: `python -m src.parallel.launch --rank_size N [flags] -- PROGRAM [arguments]`.

    PROGRAM is a Python file, -m MODULE, or any other program.

    Args:
        rank_size: Ranks of the whole run, on all machines.
        rank_table: Rank table (JSON, HCCL's format); needed on several Ascend machines.
        rank_start: First rank of this machine; from the rank table, by this machine's address, when not given.
        local_device_num: Ranks of this machine; from the rank table, or all that are left, when not given.
        device_target: CPU, GPU or Ascend.
        scheduler_address: The machine of rank 0, where there are several; the rank table's when not given.
        scheduler_port: A port of it; a free one (8118 where there are several machines) when not given.
        log_dir: Folder of the folders device{rank}.
        mpirun: This is one of rank_size processes that mpirun started: be its rank only. On GPU, MindSpore then
            connects the ranks by MPI, otherwise by its scheduler.
    """

    rank_size: int
    rank_table: str = ""
    rank_start: int | None = None
    local_device_num: int | None = None
    device_target: Literal["CPU", "GPU", "Ascend"] = "CPU"
    scheduler_address: str = ""
    scheduler_port: int | None = None
    log_dir: str = "."
    mpirun: bool = False

    def __post_init__(self) -> None:
        for name, least in (("rank_size", 1), ("rank_start", 0), ("local_device_num", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} is {value}; it must be at least {least}")
        if self.scheduler_port is not None and not 0 < self.scheduler_port < 1 << 16:
            raise InputError(f"--scheduler_port is {self.scheduler_port}; it must lie in 1 to 65535")


@dataclass(frozen=True)
class LocalRanks:
    """The ranks of this machine.

    Args:
        ranks: They.
        devices: The device of each.
    """

    ranks: range
    devices: tuple[int, ...]


def local_ranks(arguments: LaunchArguments, table: RankTable | None) -> LocalRanks:
    """Which ranks this machine starts.

    Raises:
        InputError: The run or the rank table has no such ranks.
    """
    if arguments.mpirun:
        if os.environ.get(MPI_SIZE) != str(arguments.rank_size):
            raise InputError(
                f"--mpirun: mpirun started {os.environ.get(MPI_SIZE, 'nothing')} ({MPI_SIZE}), but "
                f"--rank_size is {arguments.rank_size}: mpirun -n {arguments.rank_size} {PROG} ..."
            )
        rank = int(os.environ[MPI_RANK])
        return LocalRanks(range(rank, rank + 1), (int(os.environ[MPI_LOCAL_RANK]),))
    if table and arguments.rank_start is None and arguments.local_device_num is None:
        ranks = table.ranks_here()
    else:
        start = arguments.rank_start or 0
        number = arguments.local_device_num
        ranks = range(start, arguments.rank_size if number is None else start + number)
    if not ranks or ranks.stop > arguments.rank_size:
        raise InputError(
            f"--rank_start {ranks.start} and --local_device_num {arguments.local_device_num or 0} go "
            f"beyond the run's ranks, 0 to {arguments.rank_size - 1}"
        )
    if table:
        return LocalRanks(ranks, tuple(device.device_id for device in table.devices_of(ranks)))
    return LocalRanks(ranks, tuple(range(len(ranks))))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def is_taken(address: str, port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def scheduler_place(arguments: LaunchArguments, table: RankTable | None, ranks: range) -> tuple[str, int]:
    """Address and port at which the ranks meet.

    Raises:
        InputError: Other machines couldn't know the address, it is not of this machine, or the port is taken.
    """
    alone = len(ranks) == arguments.rank_size
    address = arguments.scheduler_address
    if not address and not alone and table:
        address = table.place(0)[0].server_id
    if not address and not alone:
        raise InputError(
            f"only ranks {ranks.start} to {ranks.stop - 1} of {arguments.rank_size} are here: give "
            "--scheduler_address, the address of the machine of rank 0, on all machines"
        )
    try:
        address = socket.gethostbyname(address or LOCALHOST)
    except OSError as error:
        raise InputError(f"--scheduler_address {address} is not known here: {error.strerror}") from error
    port = arguments.scheduler_port or (free_port() if alone else DEFAULT_PORT)
    if 0 in ranks:
        if not is_local(address):
            raise InputError(
                f"the scheduler runs beside rank 0, but {address} is no address of this machine: give its "
                "own as --scheduler_address"
            )
        if is_taken(address, port):
            raise InputError(
                f"port {port} of {address} is in use by another program; give another --scheduler_port, on all machines"
            )
    return address, port


def command_line(program: Sequence[str]) -> list[str]:
    """What runs a program: this Python, where it is Python.

    Raises:
        InputError: There is no such program.
    """
    if not program:
        raise InputError(f"no program to start: {PROG} [flags] -- PROGRAM [arguments]")
    if program[0] == "-m":
        return [sys.executable, *program]
    if program[0].endswith(".py"):
        if not Path(program[0]).is_file():
            raise InputError(f"there is no program {program[0]}")
        return [sys.executable, *program]
    if not shutil.which(program[0]):
        raise InputError(f"there is no program {program[0]}")
    return list(program)


def supervisor(arguments: LaunchArguments, program: Sequence[str]) -> Supervisor:
    """The processes of this machine, not yet started.

    Raises:
        InputError: Something that was given can't be; nothing is started then.
    """
    command = command_line(program)
    table = read(Path(arguments.rank_table)) if arguments.rank_table else None
    if table:
        table.check_size(arguments.rank_size)
    here = local_ranks(arguments, table)
    # Unbuffered, so that a log holds all that was said by a rank that is killed.
    common = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    common |= {"PYTHONUNBUFFERED": "1", "RANK_SIZE": str(arguments.rank_size)}
    by_mpi = arguments.mpirun and arguments.device_target == "GPU"
    meets = not by_mpi and not (table and arguments.device_target == "Ascend")
    if meets:
        address, port = scheduler_place(arguments, table, here.ranks)
        common = {name: value for name, value in common.items() if not name.startswith("OMPI_COMM_WORLD_")}
        common |= {"MS_WORKER_NUM": str(arguments.rank_size), "MS_SCHED_HOST": address, "MS_SCHED_PORT": str(port)}
    elif table:
        common["RANK_TABLE_FILE"] = str(Path(arguments.rank_table).resolve())
    log_dir, members, scheduler = Path(arguments.log_dir), [], None
    shown = 0 if arguments.mpirun else here.ranks.start
    try:
        for rank, device in zip(here.ranks, here.devices, strict=True):
            own = {"RANK_ID": str(rank), "DEVICE_ID": str(device)}
            if meets:
                own |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)}
            members.append(
                Member(
                    f"rank {rank}",
                    command,
                    common | own,
                    log_dir / f"device{rank}" / f"log{rank}.log",
                    shown=rank == shown,
                    asks=rank == 0,
                )
            )
        if meets and 0 in here.ranks:
            scheduler = Member(
                "the scheduler",
                [sys.executable, "-m", "src.parallel.launch.scheduler"],
                common | {"MS_ROLE": "MS_SCHED"},
                log_dir / "device0" / "scheduler.log",
            )
    except OSError as error:
        raise InputError(f"--log_dir {log_dir}: {error.filename} cannot be written: {error.strerror}") from error
    return Supervisor(members, scheduler, ranks_elsewhere=len(here.ranks) < arguments.rank_size)


def main() -> None:
    """The command line."""
    own, program = sys.argv[1:], []
    if "--" in own:
        own, program = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parse(LaunchArguments, PROG, own)
    if arguments.mpirun:
        die_with(os.getppid())
    sys.exit(supervisor(arguments, program).run())
