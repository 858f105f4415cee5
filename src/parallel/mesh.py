"""The device of this process, its place among the connected ranks, and the groups in which it communicates."""

import os
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import create_group, get_group_size, get_rank, init

from src.common.errors import InputError
from src.common.memory import require_memory
from src.common.settings import ParallelConfig
from src.parallel.compiler_options import set_compiler_options
from src.parallel.launch.launcher import LOCAL_SIZE
from src.parallel.plan.plan import AXES, Coordinates, Plan

# Set in each process by msrun (and src.parallel.launch), for a rank table, and by mpirun.
LAUNCHED = ("MS_WORKER_NUM", "RANK_TABLE_FILE", "OMPI_COMM_WORLD_SIZE")
COMPILE_CACHE = "MS_COMPILER_CACHE_ENABLE"
CALL_DEPTH = 100000  # MindSpore's default, 1000, is too small for the unrolled updates of a deep network


def prepare_device(config: ParallelConfig) -> None:
    """Select graph mode, the device of the configuration and what its compiler does.

    Raises:
        InputError: The installed MindSpore has no such device, or is told to keep compiled graphs.
    """
    # Seen with MindSpore 2.10 on a CPU: from the first step, the losses of a graph from the cache are others.
    if os.environ.get(COMPILE_CACHE) == "1":
        raise InputError(
            f"{COMPILE_CACHE} is 1: with graphs from MindSpore's cache, training gives other losses without a word; "
            f"unset {COMPILE_CACHE}"
        )
    try:
        ms.set_context(mode=ms.GRAPH_MODE, device_target=config.device_target, max_call_depth=CALL_DEPTH)
        if config.device_target != "CPU":
            ms.set_device(config.device_target, config.device_id)
            set_compiler_options(config)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"parallel.device_target {config.device_target} (device {config.device_id}) is not available "
            f"to the MindSpore that is installed: {str(error).splitlines()[0]}; CPU always is"
        ) from error


@dataclass(frozen=True)
class Group:
    """Ranks that communicate with each other.

    Args:
        ranks: Ranks of the group, in order.
        index: Position of this process among them.
        name: Name of the communicator; empty for a group of one rank.
    """

    ranks: tuple[int, ...] = (0,)
    index: int = 0
    name: str = ""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


class Mesh:
    """A plan and this process's place in it. A run of one process has a mesh too, and does not communicate.

    Args:
        plan: How the run is spread.
        rank: Rank of this process.
    """

    def __init__(self, plan: Plan, rank: int = 0):
        self.plan, self.rank = plan, rank
        self.at: Coordinates = plan.coordinates(rank)
        self._groups: dict[tuple[int, ...], Group] = {}
        self._sums: dict[str, nn.Cell] = {}

    def group(self, *axes: str) -> Group:
        """Return this rank's group along some axes. All ranks must ask for their groups in the same order."""
        return self.group_of(self.plan.group(self.rank, *axes))

    def group_of(self, ranks: tuple[int, ...]) -> Group:
        """Return the group of some ranks. This rank must be one of them."""
        if ranks not in self._groups:
            name = ""
            if len(ranks) > 1:
                name = "ranks_" + "_".join(map(str, ranks)) if len(ranks) < self.plan.world_size else "world"
                create_group(name, list(ranks))
            self._groups[ranks] = Group(ranks, ranks.index(self.rank), name)
        return self._groups[ranks]

    def total(self, values: np.ndarray, *axes: str) -> np.ndarray:
        """Return the sum of a float32 array over a group, for decisions and reports of the host."""
        group = self.group(*axes)
        values = np.asarray(values, np.float32)
        if group.size == 1:
            return values
        if group.name not in self._sums:
            self._sums[group.name] = ops.AllReduce(ops.ReduceOp.SUM, group.name)
        return self._sums[group.name](Tensor(values.reshape(-1))).asnumpy().reshape(values.shape)

    def total_of_data(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a float32 array over all ranks that have different data."""
        return self.total(values, "data", "expert")

    def all_true(self, value: bool) -> bool:
        """All-reduce a flag: return True if every rank passed True."""
        return not self.total(np.array([not value]), *AXES).any()

    def require_memory(self, what: str, needed: int, remedy: str) -> None:
        """Check that this machine's memory is enough for its ranks. All ranks must call it, before they take any.

        The memory of an Ascend or GPU device is not checked.

        Args:
            what: What needs the memory, for the message.
            needed: Bytes that this rank needs.
            remedy: What the user can do, for the message.

        Raises:
            InputError: It is not enough for this rank or for another one.
        """
        if ms.get_context("device_target") != "CPU":
            return
        ranks, problem = local_ranks(), None
        try:
            require_memory(f"{what}, on {ranks} ranks here" if ranks > 1 else what, ranks * needed, remedy)
        except InputError as error:
            problem = error
        if not self.all_true(problem is None):
            raise problem or InputError(f"{what}: another rank has not enough memory; {remedy}")

    def from_rank_0(self, content: bytes) -> bytes:
        """Broadcast bytes: return on all ranks what rank 0 passed."""
        mine = content if self.rank == 0 else b""
        size = int(self.total(np.array([len(mine)]), *AXES)[0])
        padded = np.zeros(max(64, 1 << size.bit_length()))  # so that few different shapes are communicated
        padded[: len(mine)] = np.frombuffer(mine, np.uint8)
        return self.total(padded, *AXES)[:size].astype(np.uint8).tobytes()


def local_ranks() -> int:
    """Return how many ranks of the run are on this machine, as the launcher or mpirun says."""
    return int(os.environ.get(LOCAL_SIZE) or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1)


def is_launched() -> bool:
    """Return whether this process is one of several that were started together."""
    return any(os.environ.get(name) for name in LAUNCHED)


def connect(plan: Plan) -> Mesh:
    """Initialise communication and return this process's mesh. One process alone does not communicate.

    Raises:
        InputError: The number of started processes is not the plan's number of ranks.
    """
    if not is_launched():
        if plan.world_size == 1:
            return Mesh(plan)
        raise InputError(
            f"the plan has {plan.world_size} ranks (parallel.data {plan.data} x tensor {plan.tensor} x "
            f"pipeline {plan.pipeline} x expert {plan.expert}), but this is one process; start all with "
            "scripts/run_distribute_train.sh or `python -m src.parallel.launch`"
        )
    init()
    if get_group_size() != plan.world_size:
        raise InputError(
            f"{get_group_size()} ranks were started, but parallel.data {plan.data} x tensor {plan.tensor} "
            f"x pipeline {plan.pipeline} x expert {plan.expert} makes {plan.world_size}; say "
            "--parallel.data or --parallel.world_size"
        )
    return Mesh(plan, get_rank())
