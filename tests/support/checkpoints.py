"""Helpers of the checkpoint tests: weights and moments as numpy arrays, and ranks that save and load them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import np_dtype

from src.checkpoint import store
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.holder import Holder
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import box, optimizer_box, parameter_shapes, stages

CONFIG = PanguAlphaConfig(
    vocab_size=24,
    hidden_size=8,
    num_layers=4,
    num_heads=4,
    seq_length=12,
    num_experts=4,
    expert_interval=2,
    param_init_dtype="bfloat16",
)
SHAPES = parameter_shapes(CONFIG)
BFLOAT16 = np.dtype(np_dtype.bfloat16)
TIMEOUT = 60


def plan(**sizes):
    """Return a plan for CONFIG's model."""
    return Plan(**sizes, num_layers=CONFIG.num_layers)


def whole_values(seed=0, names=tuple(SHAPES)):
    """Return a run's parameters (matrices in bfloat16) and moments: arrays by name."""
    draw = np.random.default_rng(seed)
    values = {
        name: draw.normal(size=SHAPES[name]).astype(BFLOAT16 if name.endswith("weight") else np.float32)
        for name in names
    }
    return values | {
        f"{prefix}.{name}": draw.normal(size=SHAPES[name]).astype(np.float32)
        for prefix in ("adam_m", "adam_v")
        for name in names
    }


def held_values(whole, of, rank):
    """Return the slices of these arrays that a rank of plan `of` holds."""
    at = of.coordinates(rank)
    held = {}
    for name, values in whole.items():
        parameter, cut = (name[7:], optimizer_box) if name.startswith("adam_") else (name, box)
        if at.pipeline in stages(parameter, of):
            held[name] = values[cut(parameter, SHAPES[parameter], of, at).index]
    return held


def parameters_of(values):
    """Return (model's, optimizer's) parameters with these values."""
    parameters = [Parameter(Tensor(np.ascontiguousarray(array)), name=name) for name, array in values.items()]
    return (
        [parameter for parameter in parameters if not parameter.name.startswith("adam_")],
        [parameter for parameter in parameters if parameter.name.startswith("adam_")],
    )


def bits(values):
    """Return the shape, dtype and bytes of each array, to compare bit for bit."""
    return {name: (array.shape, str(array.dtype), array.tobytes()) for name, array in values.items()}


def at_once(of, work):
    """Call work(holder) for each rank of plan `of` in a thread of its own, and return the results by rank.

    The holders' all_true meets the other threads. If a thread fails, all stop and its error is raised.
    """
    size = of.world_size
    meeting, votes, first_error = threading.Barrier(size, timeout=TIMEOUT), [True] * size, []

    def run(rank):
        def all_true(value):
            votes[rank] = value
            meeting.wait()
            together = all(votes)
            meeting.wait()
            return together

        try:
            return work(Holder(of, rank, SHAPES, all_true))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                first_error.append(error)
            meeting.abort()

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(run, range(size)))
    if first_error:
        raise first_error[0]
    return results


def run_config(of):
    """Return the settings of a run of CONFIG's model with plan `of`."""
    parallel = ParallelConfig(
        pipeline=of.pipeline,
        virtual_stages=of.virtual_stages,
        pipeline_scheduler="zero_bubble_v" if of.turns_back else "1f1b",
        data=of.data,
        expert=of.expert,
        tensor=of.tensor,
        optimizer_shard=of.optimizer_shard,
        recompute=True,
        vocab_parallel=of.vocab_parallel,
    )
    return RunConfig(CONFIG, DataConfig(), TrainingConfig(), parallel, GenerationConfig())


def save_ranks(folder, step, whole, of, keep=3):
    """Save checkpoint `step` with all ranks of plan `of`, and return its folder."""

    def save(holder):
        model, optimizer = parameters_of(held_values(whole, of, holder.rank))
        return store.save(folder, step, model, optimizer, {"note": f"of {step}"}, run_config(of).save, keep, holder)

    return at_once(of, save)[0]


def load_ranks(source, of, names=tuple(SHAPES)):
    """Load a checkpoint on each rank of plan `of`, and return the arrays by name."""

    def load(holder):
        held = held_values(whole_values(999, names), of, holder.rank)
        model, optimizer = parameters_of(held)
        store.load(source, [*model, *optimizer], holder)
        return {parameter.name: parameter.asnumpy() for parameter in [*model, *optimizer]}

    return [load(Holder(of, rank, SHAPES)) for rank in range(of.world_size)]


def parameters(seed=0, dtype=np.float32, names=("a.weight", "b.bias")):
    """Return parameters of shape (3, 4) with random values."""
    draw = np.random.default_rng(seed)
    return [Parameter(Tensor(draw.normal(size=(3, 4)).astype(dtype)), name=name) for name in names]


def write_with_mindspore(file, named):
    """Write arrays by name with mindspore.save_checkpoint."""
    ms.save_checkpoint([{"name": name, "data": Tensor(value)} for name, value in named.items()], str(file))


def steps(folder):
    """Return the sorted names of a folder's entries."""
    return [path.name for path in sorted(folder.iterdir())]


def flip_a_bit(file, offset):
    """Damage a file: change one bit of the byte at `offset`."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)
