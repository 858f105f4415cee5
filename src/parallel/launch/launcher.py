"""Decide which ranks of a run this machine starts, and with which environment.

    python -m src.parallel.launch --rank_size 4 -- train.py --mode tiny --parallel.tensor 2 ...

On Ascend with a rank table, each rank gets RANK_TABLE_FILE, RANK_ID and DEVICE_ID. Otherwise the ranks form MindSpore's
dynamic cluster, with the variables that MindSpore's msrun sets and a scheduler process beside rank 0. msrun itself is
not used, for three reasons: it leaves its ranks running when it is killed, it kills them before they can save, and it
waits without end for a scheduler that hangs.

The output of rank r goes to device{r}/log{r}.log, which is overwritten each time. The output of this machine's first
rank also goes to the terminal.
"""

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.common.checks import require, whole_numbers
from src.common.errors import InputError
from src.parallel.launch.rank_table import RankTable, is_local, read
from src.parallel.launch.supervisor import Member, Supervisor

PROG = "python -m src.parallel.launch"
LOCALHOST = "127.0.0.1"
MOST_RANKS_HERE = 1024  # far above any machine, so that a typing error does not start processes without end
DEFAULT_PORT = 8118  # MindSpore's default; used when other machines must know the port
LOCAL_SIZE = "LOCAL_WORLD_SIZE"  # number of ranks on this machine, under the name that other launchers give it
# Other launchers set these. They are removed, because a value left over would contradict the ones that are set here.
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
    LOCAL_SIZE,
)
# Before they meet, ranks compile for minutes, some longer than others. The ModelZoo's train.py lets HCCL wait as long.
HCCL_SECONDS = {"HCCL_CONNECT_TIMEOUT": "6000"}
MPI_RANK, MPI_LOCAL_RANK, MPI_SIZE = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"


@dataclass
class LaunchArguments:
    """Start ranks: `python -m src.parallel.launch --rank_size N [flags] -- PROGRAM [arguments]`.

    PROGRAM is a Python file, -m MODULE, or any other program.

    Args:
        rank_size: Number of ranks of the whole run, on all machines.
        rank_table: Path of a rank table (JSON in HCCL's format). A run on several Ascend machines needs one.
        rank_start: First rank of this machine. By default the launcher finds it in the rank table by this machine's
            address; without a table it is 0.
        local_device_num: Number of ranks of this machine. By default the launcher takes it from the rank table;
            without a table it takes all ranks from rank_start on.
        device_target: Kind of device: CPU, GPU or Ascend.
        scheduler_address: Address of the machine of rank 0. A run on several machines needs it; by default it comes
            from the rank table.
        scheduler_port: Port of the scheduler. By default a free one, or 8118 if there are several machines.
        log_dir: Folder in which the folders device{rank} are created.
        mpirun: mpirun has started rank_size copies of this launcher, and each copy runs one rank. On GPU, MindSpore
            then connects the ranks by MPI, otherwise by its scheduler.
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
        whole_numbers(1, 1 << 20, self, "rank_size")
        whole_numbers(1, MOST_RANKS_HERE, self, "local_device_num")
        whole_numbers(0, 1 << 20, self, "rank_start")
        require(
            self.scheduler_port is None or 0 < self.scheduler_port < 1 << 16,
            f"--scheduler_port is {self.scheduler_port}; it must lie in 1 to 65535",
        )


@dataclass(frozen=True)
class LocalRanks:
    """The ranks that this machine starts.

    Args:
        ranks: Consecutive rank numbers.
        devices: Device number of each rank, in the order of `ranks`.
    """

    ranks: range
    devices: tuple[int, ...]


def local_ranks(arguments: LaunchArguments, table: RankTable | None) -> LocalRanks:
    """Return the ranks that this machine starts.

    Raises:
        InputError: The run or the rank table has no such ranks.
    """
    if arguments.mpirun:
        require(
            os.environ.get(MPI_SIZE) == str(arguments.rank_size),
            f"--mpirun: mpirun started {os.environ.get(MPI_SIZE, 'nothing')} ({MPI_SIZE}), but "
            f"--rank_size is {arguments.rank_size}: mpirun -n {arguments.rank_size} {PROG} ...",
        )
        rank = int(os.environ[MPI_RANK])
        return LocalRanks(range(rank, rank + 1), (int(os.environ[MPI_LOCAL_RANK]),))
    if table and arguments.rank_start is None and arguments.local_device_num is None:
        ranks = table.ranks_here()
    else:
        start = arguments.rank_start or 0
        number = arguments.local_device_num
        ranks = range(start, arguments.rank_size if number is None else start + number)
    require(
        ranks and ranks.stop <= arguments.rank_size,
        f"--rank_start {ranks.start} and --local_device_num {arguments.local_device_num or 0} go "
        f"beyond the run's ranks, 0 to {arguments.rank_size - 1}",
    )
    require(
        len(ranks) <= MOST_RANKS_HERE,
        f"{len(ranks)} ranks on this machine are more than {MOST_RANKS_HERE}: check --rank_size, or give "
        "--local_device_num",
    )
    if table:
        return LocalRanks(ranks, tuple(device.device_id for device in table.devices_of(ranks)))
    return LocalRanks(ranks, tuple(range(len(ranks))))


def free_port() -> int:
    """Return a port on which no program listens."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def is_taken(address: str, port: int) -> bool:
    """Return whether a program listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def scheduler_place(arguments: LaunchArguments, table: RankTable | None, ranks: range) -> tuple[str, int]:
    """Return address and port of the scheduler.

    Raises:
        InputError: Other machines cannot know the address, rank 0 is here but the address is not this machine's, or
            the port is taken.
    """
    alone = len(ranks) == arguments.rank_size
    address = arguments.scheduler_address
    if not address and not alone and table:
        address = table.place(0)[0].address
    require(
        address or alone,
        f"only ranks {ranks.start} to {ranks.stop - 1} of {arguments.rank_size} are here: give "
        "--scheduler_address, the address of the machine of rank 0, on all machines",
    )
    try:
        address = socket.gethostbyname(address or LOCALHOST)
    except OSError as error:
        raise InputError(f"--scheduler_address {address} is not known here: {error.strerror}") from error
    port = arguments.scheduler_port or (free_port() if alone else DEFAULT_PORT)
    if 0 in ranks:
        require(
            is_local(address),
            f"the scheduler runs beside rank 0, but {address} is no address of this machine: give an address of this "
            "machine as --scheduler_address",
        )
        require(
            not is_taken(address, port),
            f"port {port} of {address} is in use by another program; give another --scheduler_port, on all machines",
        )
    return address, port


def command_line(program: Sequence[str]) -> list[str]:
    """Return the command that runs a program; a Python file or module runs under this Python.

    Raises:
        InputError: There is no such program.
    """
    require(program, f"no program to start: {PROG} [flags] -- PROGRAM [arguments]")
    name = program[0]
    if name == "-m":
        return [sys.executable, *program]
    is_python = name.endswith(".py")
    require(Path(name).is_file() if is_python else shutil.which(name), f"there is no program {name}")
    return [sys.executable, *program] if is_python else list(program)


def _shared_environment(arguments: LaunchArguments) -> dict[str, str]:
    """Return the environment of all ranks, before the variables by which they find each other."""
    # Unbuffered output, so that the log of a killed rank is complete.
    own = {"PYTHONUNBUFFERED": "1", "RANK_SIZE": str(arguments.rank_size)}
    defaults = HCCL_SECONDS if arguments.device_target == "Ascend" else {}
    return defaults | {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES} | own


def supervisor(arguments: LaunchArguments, program: Sequence[str]) -> Supervisor:
    """Prepare the processes of this machine. `run` of the result starts them.

    Raises:
        InputError: An argument, the rank table or the program cannot be used; no process has been started.
    """
    command = command_line(program)
    table = read(Path(arguments.rank_table)) if arguments.rank_table else None
    if table:
        table.check_size(arguments.rank_size)
    here = local_ranks(arguments, table)
    common = _shared_environment(arguments)
    by_mpi = arguments.mpirun and arguments.device_target == "GPU"
    in_cluster = not by_mpi and not (table and arguments.device_target == "Ascend")
    if in_cluster:
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
            own |= {} if arguments.mpirun else {LOCAL_SIZE: str(len(here.ranks))}
            if in_cluster:
                own |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)}
            log = log_dir / f"device{rank}" / f"log{rank}.log"
            members.append(
                Member(f"rank {rank}", command, common | own, log, shown=rank == shown, reads_input=rank == 0)
            )
        if in_cluster and 0 in here.ranks:
            scheduler = Member(
                "the scheduler",
                [sys.executable, "-m", "src.parallel.launch.scheduler"],
                common | {"MS_ROLE": "MS_SCHED"},
                log_dir / "device0" / "scheduler.log",
            )
    except OSError as error:
        raise InputError(f"--log_dir {log_dir}: {error.filename} cannot be written: {error.strerror}") from error
    return Supervisor(members, scheduler, ranks_elsewhere=len(here.ranks) < arguments.rank_size)
