"""The text of `train.py --plan`: what each rank does, holds and sends. The figures come from costs.py."""

from collections.abc import Callable, Sequence
from dataclasses import astuple

from src.common.tables import table
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.costs import RankMemory, bubble, communication, rank_memory
from src.parallel.plan.fitting import GB, is_known, nearest_fit, need_of
from src.parallel.plan.plan import Plan
from src.parallel.plan.schedule import in_flight, messages_to_stages

MOST_ROWS = 16  # with more ranks, the table of ranks shows only the first and the last one of each stage
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_KINDS = ("tensor", "data", "pipeline", "tied embedding", "expert")  # of communication, in the order of the columns


def describe(config: RunConfig) -> str:
    """Return the text that `--plan` prints."""
    plan = Plan.of(config.parallel, config.model)
    parts = [_summary(config, plan), _ranks(plan), _stages(config, plan), _memory(config, plan), _traffic(config, plan)]
    return "\n\n".join(parts + ([_fit(config)] if is_known(config.parallel) else []))


def _fit(config: RunConfig) -> str:
    need = need_of(config)
    told = f"a rank of stage {need.stage} needs {need.bytes / GB:.1f} GB, a device has {need.limit / GB:.0f}"
    return f"Fits: {told}" if need.fits else f"Does not fit: {told}; {nearest_fit(config)}"


def _summary(config: RunConfig, plan: Plan) -> str:
    model, training, parallel = config.model, config.training, config.parallel
    experts = f", {model.num_experts} experts every {model.expert_interval} layers" if model.num_experts else ""
    tokens = plan.data_ranks * config.micro_steps * training.batch_size * model.seq_length
    switched_on = [
        name
        for name in ("optimizer_shard", "sequence_parallel", "recompute_slice_activation", "optimizer_offload")
        if getattr(parallel, name)
    ]
    if parallel.recompute != "none":
        switched_on.append(f"{parallel.recompute} recompute")
    if plan.vocab_parts < plan.tensor:
        switched_on.append("the whole word table on each tensor rank")
    return "\n".join(
        [
            f"model   {model.num_parameters:,} parameters: {model.num_layers} layers (the query layer counted), "
            f"hidden size {model.hidden_size}, {model.num_heads} heads,",
            f"        vocabulary {model.vocab_size}{experts}; weights {model.param_init_dtype}, computed in "
            f"{model.compute_dtype}{' (the products; all else in float32)' if config.has_half_products else ''}",
            f"world   {plan.world_size} ranks = {plan.pipeline} pipeline (pp) x {plan.data} data (dp) x {plan.expert} "
            f"expert (ep) x {plan.tensor} tensor (tp)",
            *([f"        with {', '.join(switched_on)}"] if switched_on else []),
            f"batch   {tokens:,} tokens a step = {plan.data_ranks} ranks with different data x {config.micro_steps} "
            f"micro-batches x {training.batch_size} sequences x {model.seq_length}",
            f"bubble  {_bubble(config, plan)}",
        ]
    )


def _bubble(config: RunConfig, plan: Plan) -> str:
    if plan.turns_back:
        return "not known with zero_bubble_v: it depends on how long the gradients of weights take"
    laps = f" x {plan.virtual_stages} virtual stages" if plan.virtual_stages > 1 else ""
    share = bubble(plan.pipeline, config.micro_steps, plan.virtual_stages)
    return (
        f"{share:.1%} of a step = ({plan.pipeline} stages - 1) / "
        f"({config.micro_steps} micro-batches{laps} + {plan.pipeline} - 1)"
    )


def _ranks(plan: Plan) -> str:
    shown, which = range(plan.world_size), "Ranks"
    if plan.world_size > MOST_ROWS:
        of_stages = [_stage_ranks(plan, stage) for stage in range(plan.pipeline)]
        shown = sorted({rank for ranks in of_stages for rank in (ranks[0], ranks[-1])})
        which = "The first and last rank of each stage"
    groups: dict[str, tuple[str, ...]] = {"tensor": ("tensor",), "data": ("data",), "pipeline": ("pipeline",)}
    if plan.expert > 1:
        groups |= {"expert": ("expert",), "data x expert": ("data", "expert")}
    rows = [
        [rank, *astuple(plan.coordinates(rank)), *(_ranges(plan.group(rank, *axes)) for axes in groups.values())]
        for rank in shown
    ]
    return table(["rank", "pp", "dp", "ep", "tp", *groups], rows, f"{which}, and their groups")


def _stages(config: RunConfig, plan: Plan) -> str:
    header, rows, told = ["stage", "ranks", "layers", "parameters a rank"], [], ""
    if plan.pipeline > 1:
        header += ["in flight", "messages"]
        told = (
            f"\nin flight: micro-batches{' in each chunk' if plan.virtual_stages > 1 else ''}, at most; "
            "messages: hidden states and gradients to other stages, a step"
        )
    for stage in range(plan.pipeline):
        ranks = _stage_ranks(plan, stage)
        row = [stage, _ranges(ranks), _layer_names(plan, stage), f"{rank_memory(config, ranks[0]).parameters:,}"]
        if plan.pipeline > 1:
            row += [" + ".join(map(str, in_flight(config, plan, stage))), messages_to_stages(config, plan, stage)]
        rows.append(row)
    return table(header, rows, "Stages") + told


def _layer_names(plan: Plan, stage: int) -> str:
    """Return what a stage holds, such as `embedding, blocks 0-3, 8-11`. Each chunk has its own span of blocks."""
    layers, query_layer = plan.layers(stage), plan.num_layers - 1
    names, spans = ["embedding"] if stage == 0 else [], []
    for chunk in plan.chunks(stage):
        blocks = [layer for layer in plan.layers_of_chunk(chunk) if layer < query_layer]
        if blocks:
            spans.append(f"{blocks[0]}-{blocks[-1]}" if len(blocks) > 1 else str(blocks[0]))
    if spans:
        names.append(f"block{'s' * (len(layers) - (query_layer in layers) > 1)} {', '.join(spans)}")
    if query_layer in layers:
        names += ["query layer", "head"]
    return ", ".join(names)


def _memory(config: RunConfig, plan: Plan) -> str:
    """Return the table of memory. A step's gradients and the sums of them are one column."""
    stages = [rank_memory(config, _stage_ranks(plan, stage)[0]) for stage in range(plan.pipeline)]
    columns: dict[str, Callable[[RankMemory], int]] = {"weights": lambda memory: memory.weights}
    copies = "weight copies" if config.is_semi_auto else "updated slices"
    if any(memory.copies for memory in stages):
        columns[copies] = lambda memory: memory.copies
    columns["gradients"] = lambda memory: memory.sums + memory.gradients
    columns["moments (host)" if config.parallel.optimizer_offload else "moments"] = lambda memory: memory.moments
    columns |= {
        "activations": lambda memory: memory.activations,
        "logits": lambda memory: memory.logits,
        "total": lambda memory: memory.total,
    }
    unit, size = _unit(max(memory.total for memory in stages))
    rows = [[stage, *(f"{of(memory) / size:.3f}" for of in columns.values())] for stage, memory in enumerate(stages)]
    told = [table(["stage", *columns], rows, f"Memory a rank, {unit}")]
    if config.is_semi_auto:
        told.append("weights: what is held between steps; the parts that the rank updates, with optimizer_shard")
        told.append(
            "weight copies: in the compute dtype, or gathered; gradients: also their sums and the update's arrays"
        )
        moments = dict.fromkeys(memory.moment for memory in stages)
        named = (f"{_ranges([n for n, one in enumerate(stages) if one.moment == m])}: {m}" for m in moments)
        told.append(f"the moment of a step that needs most, by stage: {'; '.join(named)}")
    elif copies in columns:
        told.append("updated slices: copies of the rows that the rank updates, where they divide over the replicas")
    told.append("activations and logits are estimates; workspaces, libraries and fragmentation are not counted")
    return "\n".join(told)


def _traffic(config: RunConfig, plan: Plan) -> str:
    sends = [communication(config, _stage_ranks(plan, stage)[0]) for stage in range(plan.pipeline)]
    if not any(sends):
        return "Communication: none, because there is one rank"
    kinds = [kind for kind in _KINDS if any(one.kind == kind for of_stage in sends for one in of_stage)]
    unit, size = _unit(max(sum(one.payload for one in of_stage) for of_stage in sends))
    rows = []
    for stage, of_stage in enumerate(sends):
        payloads = [sum(one.payload for one in of_stage if one.kind == kind) for kind in kinds]
        rows.append(
            [stage, *(f"{value / size:.3f}" for value in (*payloads, sum(payloads), sum(one.sent for one in of_stage)))]
        )
    told = table(
        ["stage", *kinds, "total", "sent by a ring"],
        rows,
        f"Communication a step and rank, {unit} of payload (an AllReduce counts its array once)",
    )
    for kind in kinds:
        operations = dict.fromkeys(
            f"{one.operation} among {one.ranks}" for of_stage in sends for one in of_stage if one.kind == kind
        )
        told += f"\n{kind}: {', '.join(operations)}"
    if config.parallel.device_target == "CPU":
        told += "\non a CPU all of these are made of float32 AllReduces, which send more"
    return told


def _stage_ranks(plan: Plan, stage: int) -> range:
    width = plan.world_size // plan.pipeline
    return range(stage * width, (stage + 1) * width)


def _unit(largest: int) -> tuple[str, int]:
    """Return name and bytes of the largest unit that makes the figure at least 0.5."""
    return next((unit for unit in _UNITS if 2 * largest >= unit[1]), _UNITS[-1])


def _ranges(ranks: Sequence[int]) -> str:
    """Return ranks in equal steps as text: `0, 8`, `0-7` or `0, 128 .. 1920`."""
    if len(ranks) <= 3:
        return ", ".join(map(str, ranks))
    step = ranks[1] - ranks[0]
    return f"{ranks[0]}-{ranks[-1]}" if step == 1 else f"{ranks[0]}, {ranks[1]} .. {ranks[-1]}"
