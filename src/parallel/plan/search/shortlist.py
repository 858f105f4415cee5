"""The plans of a run on one kind of machine that fit its memory, fastest first by the step-time model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from src.common.checks import require
from src.common.errors import InputError
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.fitting import GB
from src.parallel.plan.plan import Plan
from src.parallel.plan.search.machines import Machine
from src.parallel.plan.search.step_time import stage_costs, step_seconds

FEWEST_TOKENS = 2048  # of a micro-batch in published.py
HEADROOM = 0.1  # share of a device's memory for what a plan does not count: libraries, messages in transit
_RECOMPUTE = ("full", "selective", "none")  # each one keeps more than the one before


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
    given = _candidate(config, machine)
    sequences = config.training.batch_size * config.micro_steps * Plan.of(config.parallel, config.model).data_ranks
    tried, smallest, fitting = 0, given, []
    for sizes in _sizes(config, sequences):
        found = list(_of_sizes(config, machine, memory, sizes, sequences // sizes["data"]))
        tried += len(found)
        smallest = min([smallest, *found], key=lambda one: one.memory)
        fits = [one for one in found if one.memory <= memory]
        fitting += [_best(fits)] if fits else []
    sizes = smallest.config.parallel
    require(
        fitting,
        f"no plan of {sizes.world_size} ranks fits {memory / GB:.3g} GB; the smallest of {tried} (tensor "
        f"{sizes.tensor}, pipeline {sizes.pipeline}, data {sizes.data}) needs {smallest.memory / GB:.1f} GB: give a "
        "larger --parallel.world_size or --parallel.device_memory",
    )
    return Shortlist(sorted(fitting, key=lambda one: one.seconds), given, tried, sequences)


def _sizes(config: RunConfig, sequences: int) -> Iterator[dict[str, int]]:
    """Yield the parallel sizes that make world_size and divide the sequences of a step."""
    for tensor in _divisors(config.parallel.world_size):
        for pipeline in _divisors(config.parallel.world_size // tensor):
            data = config.parallel.world_size // tensor // pipeline
            if sequences % data == 0:
                yield {"tensor": tensor, "pipeline": pipeline, "data": data}


def _of_sizes(
    config: RunConfig, machine: Machine, memory: float, sizes: dict[str, int], sequences: int
) -> Iterator[Candidate]:
    """Yield the plans with these sizes and these sequences of a replica, without those that surely need too much."""
    fits = False
    for recompute in _RECOMPUTE:
        for batch_size in _divisors(sequences):
            made = _with_plan(config, sizes, recompute, batch_size, sequences // batch_size)
            if made is None:
                continue
            found = _candidate(made, machine)
            yield found
            fits = fits or found.memory <= memory
            if not fits:
                return  # the first plan needs the least
            if found.memory > memory:
                break  # and so do larger micro-batches


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest plan; of those within 1%, the one that needs the least memory.

    Smaller micro-batches than those of published runs are taken only if no larger one fits: small products are slower
    than the model says.
    """
    usual = [one for one in candidates if one.config.training.batch_size * one.config.model.seq_length >= FEWEST_TOKENS]
    fastest = min(one.seconds for one in usual or candidates)
    return min((one for one in usual or candidates if one.seconds <= 1.01 * fastest), key=lambda one: one.memory)


def _with_plan(
    config: RunConfig, sizes: dict[str, int], recompute: str, batch_size: int, micro_batches: int
) -> RunConfig | None:
    """Return the settings with another plan; None if they can't have it."""
    try:
        parallel = replace(
            config.parallel,
            **sizes,
            recompute=recompute,
            micro_batch_num=micro_batches,
            optimizer_shard=sizes["data"] > 1 and config.training.optimizer != "lamb",
            sequence_parallel=sizes["tensor"] > 1,
        )
        training = replace(config.training, batch_size=batch_size, accumulation_steps=1)
        return replace(config, parallel=parallel, training=training)
    except InputError:
        return None


def _candidate(config: RunConfig, machine: Machine) -> Candidate:
    stages = stage_costs(config, machine)
    return Candidate(config, step_seconds(stages, machine.shares), max(stage.memory.total for stage in stages))


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
