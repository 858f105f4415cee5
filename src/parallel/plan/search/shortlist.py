"""The plans of a run on one kind of machine that fit its memory, fastest first by the step-time model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from src.common.checks import require
from src.common.errors import InputError
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.costs import RankMemory
from src.parallel.plan.fitting import GB
from src.parallel.plan.plan import Plan
from src.parallel.plan.search.machines import Machine
from src.parallel.plan.search.step_time import stage_costs, stage_memories, step_seconds
from src.parallel.plan.sizes import token_count

# Tokens of the smallest micro-batch in published.py. Small products are slower than the model says, so smaller ones are
# taken only if no larger one fits.
FEWEST_TOKENS = 2048
HEADROOM = 0.1  # share of a device's memory for what a plan does not count: libraries, messages in transit
VIRTUAL_STAGES = (1, 2, 4)
_RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Candidate:
    """A plan.

    Args:
        config: The run's settings with this plan.
        seconds: Predicted seconds of an optimizer step.
        memory: Bytes of the rank that holds the most.
    """

    config: RunConfig
    seconds: float
    memory: int


@dataclass(frozen=True)
class Shortlist:
    """What a search found.

    Args:
        fitting: For each tensor, pipeline and data parallel size, the fastest plan that fits; fastest first.
        given: The plan that the settings themselves make.
        tried: Number of plans that were looked at.
        sequences: Sequences of an optimizer step, the same for all plans.
    """

    fitting: list[Candidate]
    given: Candidate
    tried: int
    sequences: int


def search(config: RunConfig, machine: Machine, memory: float) -> Shortlist:
    """Try all plans of a run's world_size that keep its sequences of a step.

    Args:
        config: The run. Its plan says how many sequences a step has.
        machine: One of its devices.
        memory: Bytes that a device has for a plan.

    Raises:
        InputError: No plan fits.
    """
    given = Candidate(config, step_seconds(stage_costs(config, machine), machine.shares), _need(config))
    sequences = config.training.batch_size * config.micro_steps * Plan.of(config.parallel, config.model).data_ranks
    tried, fitting = 0, []
    for sizes in _sizes(config, sequences):
        timed = list(_timed(config, machine, memory, sizes, sequences // sizes["data"]))
        tried += len(timed)
        usual = [(seconds, one) for seconds, one in timed if token_count(one) >= FEWEST_TOKENS]
        best = _fastest(usual, memory) or _fastest(timed, memory)
        fitting += [best] if best else []
    require(
        fitting,
        f"no plan of {config.parallel.world_size} ranks fits {memory / GB:.3g} GB; that of the settings needs "
        f"{given.memory / GB:.1f} GB: give a larger --parallel.world_size or --parallel.device_memory",
    )
    return Shortlist(sorted(fitting, key=lambda one: one.seconds), given, tried, sequences)


def _sizes(config: RunConfig, sequences: int) -> Iterator[dict[str, int]]:
    """Yield the parallel sizes that make world_size and divide the sequences of a step."""
    for tensor in _divisors(config.parallel.world_size):
        for pipeline in _divisors(config.parallel.world_size // tensor):
            data = config.parallel.world_size // tensor // pipeline
            if sequences % data == 0:
                yield {"tensor": tensor, "pipeline": pipeline, "data": data}


def _timed(
    config: RunConfig, machine: Machine, memory: float, sizes: dict[str, int], sequences: int
) -> Iterator[tuple[float, RunConfig]]:
    """Yield the plans with these sizes and these sequences of a replica, and their seconds of a step.

    Plans whose weights alone need too much are left out. All plans with several micro-batches and the same virtual
    stages have the same weights.
    """
    held: dict[tuple[bool, int], list[RankMemory]] = {}
    for recompute, virtual_stages, batch_size in product(_RECOMPUTE, VIRTUAL_STAGES, _divisors(sequences)):
        plan = sizes | {"virtual_stages": virtual_stages, "micro_batch_num": sequences // batch_size}
        made = _with_plan(config, plan, recompute, batch_size)
        if made is None:
            continue
        weights = made.micro_steps > 1, virtual_stages
        if weights not in held:
            held[weights] = stage_memories(made)
        if max(one.held for one in held[weights]) <= memory:
            yield step_seconds(stage_costs(made, machine, memories=held[weights]), machine.shares), made


def _fastest(timed: Sequence[tuple[float, RunConfig]], memory: float) -> Candidate | None:
    """Return the fastest plan that fits; of those within 1%, the one that needs the least memory."""
    best, slowest = None, math.inf
    for seconds, config in sorted(timed, key=lambda one: one[0]):
        if seconds > slowest:
            break
        need = _need(config)
        if need <= memory and (best is None or need < best.memory):
            best, slowest = Candidate(config, seconds, need), min(slowest, 1.01 * seconds)
    return best


def _need(config: RunConfig) -> int:
    """Return the bytes that the fullest rank needs."""
    return max(one.total for one in stage_memories(config))


def _with_plan(config: RunConfig, plan: dict[str, int], recompute: str, batch_size: int) -> RunConfig | None:
    """Return the settings with another plan; None if they can't have it."""
    try:
        parallel = replace(
            config.parallel,
            **plan,
            recompute=recompute,
            optimizer_shard=plan["data"] > 1 and config.training.optimizer != "lamb",
            sequence_parallel=plan["tensor"] > 1,
        )
        training = replace(config.training, batch_size=batch_size, accumulation_steps=1)
        return replace(config, parallel=parallel, training=training)
    except InputError:
        return None


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
