"""Whether a plan fits the memory of a device, and the nearest one that does. Nothing runs here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.costs import rank_memory, weight_bytes
from src.parallel.plan.plan import Plan

GB = 10**9
CARD_MEMORY = {"910A": 32.0, "A2": 64.0, "A3": 64.0}  # GB of an Ascend device. A card of A3 has two devices.
GPU_MEMORY = 80.0  # of an A100 or H100
MOST_TENSOR = 8  # devices of a machine: tensor parallel over more sends too much


@dataclass(frozen=True)
class Need:
    """Memory that a plan needs.

    Args:
        stage: The pipeline stage that needs most.
        bytes: What one of its ranks needs.
        limit: Bytes of a device.
    """

    stage: int
    bytes: int
    limit: int

    @property
    def fits(self) -> bool:
        """Whether it is there."""
        return self.bytes <= self.limit


def is_known(parallel: ParallelConfig) -> bool:
    """Return whether a run has a plan for devices, whose memory can be told before."""
    return parallel.device_target != "CPU" and not parallel.strategy_search


def device_memory(parallel: ParallelConfig) -> float:
    """Return the memory of a device in GB: parallel.device_memory, or that of the kind of device."""
    if parallel.device_memory:
        return parallel.device_memory
    if parallel.device_target == "GPU":
        return GPU_MEMORY
    return CARD_MEMORY["910A" if parallel.chip == "auto" else parallel.chip]


def need_of(config: RunConfig) -> Need:
    """Return the memory that the fullest rank of a run needs."""
    plan = Plan.of(config.parallel, config.model)
    width = plan.world_size // plan.pipeline
    totals = [rank_memory(config, stage * width).total for stage in range(plan.pipeline)]
    return Need(totals.index(max(totals)), max(totals), int(device_memory(config.parallel) * GB))


def require_fit(config: RunConfig) -> None:
    """Check that a run on devices fits their memory. Of a plan that the compiler searches for, nothing is known.

    Raises:
        InputError: It does not. The message names the nearest plan that does.
    """
    if not is_known(config.parallel):
        return
    need = need_of(config)
    if not need.fits:
        raise InputError(
            f"this plan does not fit: a rank of stage {need.stage} needs {need.bytes / GB:.1f} GB, a device has "
            f"{need.limit / GB:.0f} (parallel.device_memory); {nearest_fit(config)}"
        )


def require_weights_fit(config: RunConfig) -> None:
    """Check that the weights of a model fit the memory of devices that only generate and score.

    Raises:
        InputError: They do not.
    """
    if not is_known(config.parallel):
        return
    plan, limit = Plan.of(config.parallel, config.model), device_memory(config.parallel)
    width = plan.world_size // plan.pipeline
    held = max(weight_bytes(config.graph_model, plan, stage * width) for stage in range(plan.pipeline)) / GB
    if held > limit:
        is_whole = config.model.param_init_dtype == "float32"
        halves = "halve them (model.param_init_dtype float16), or " if is_whole else ""
        raise InputError(
            f"the weights do not fit: a rank holds {held:.1f} GB, a device has {limit:.0f} (parallel.device_memory); "
            f"{halves}spread them over more devices (parallel.tensor)"
        )


def nearest_fit(config: RunConfig) -> str:
    """Return the flags of the nearest plan on as many devices that fits, as a remedy in words."""
    for changed, flags in _neighbours(config):
        need = need_of(changed)
        if need.fits:
            return f"the nearest plan that fits, with {need.bytes / GB:.1f} GB: {' '.join(flags)}"
    return "no plan near it fits as many devices: take more of them"


def _neighbours(config: RunConfig) -> Iterator[tuple[RunConfig, list[str]]]:
    """Yield changed runs with the flags that change them, in the order of how much they change.

    Memory for time comes first (recompute, optimizer_shard), then smaller micro-batches, and more of them, so that a
    step has as many tokens. The last is another split: more tensor parallel, then more stages.
    """
    parallel = config.parallel
    kinds = ("none", "selective", "full")
    recomputes = kinds[kinds.index(parallel.recompute) :]
    shards = dict.fromkeys((parallel.optimizer_shard, True))
    splits = _splits(parallel)
    halves = _halves(config.training.batch_size)
    for (tensor, pipeline), half, shard, recompute in product(splits, halves, shards, recomputes):
        data = parallel.world_size // tensor // pipeline // parallel.expert
        # As many sequences a step: what data parallel loses, micro-batches gain.
        batch = config.training.batch_size // half
        micro = parallel.micro_batch_num * half * parallel.data // data
        wanted = {"tensor": tensor, "pipeline": pipeline, "data": data, "micro_batch_num": micro}
        wanted |= {"optimizer_shard": shard, "recompute": recompute}
        differing = {name: value for name, value in wanted.items() if value != getattr(parallel, name)}
        flags = [f"--parallel.{name} {_text(value)}" for name, value in differing.items()]
        flags += [f"--training.batch_size {batch}"] if half > 1 else []
        try:
            changed = replace(
                config, parallel=replace(parallel, **wanted), training=replace(config.training, batch_size=batch)
            )
        except InputError:
            continue  # it does not divide, or this model has no such plan
        if flags and micro * config.training.accumulation_steps >= pipeline:
            yield changed, flags


def _splits(parallel: ParallelConfig) -> Sequence[tuple[int, int]]:
    """Return (tensor, pipeline) from the given ones on, by doubling."""
    found, ranks = [], parallel.world_size // parallel.expert
    for pipeline in _doubled(parallel.pipeline, ranks):
        for tensor in _doubled(parallel.tensor, max(MOST_TENSOR, parallel.tensor)):
            if ranks % (tensor * pipeline) == 0:
                found.append((tensor, pipeline))
    return found


def _doubled(first: int, most: int) -> list[int]:
    return [first << times for times in range(20) if first << times <= most]


def _halves(batch_size: int) -> list[int]:
    return [1 << times for times in range(20) if batch_size % (1 << times) == 0]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
