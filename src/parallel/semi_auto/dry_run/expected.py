"""What the compiler should make of a plan: the slices of each rank, and the number of its messages.

Slices come from sharding.py, as in execution. The messages follow the formula in docs/parallel.md. MindSpore is not
imported here.
"""

from collections import Counter
from collections.abc import Callable

from src.nn.parameters import WORD_TABLE
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.compiled_memory import sliced_sums
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import (
    CACHE_BLOCK,
    box,
    cache_blocks,
    compiled_box,
    is_expert,
    parameter_shapes,
    stages,
    tensor_axis,
)

Message = tuple[str, int, str, str]  # operation, ranks of its group, part of the model, phase


def slices(config: RunConfig, plan: Plan, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a rank keeps between optimizer steps, by the compiler's names."""
    at = plan.coordinates(rank)
    found = {}
    for name, shape in parameter_shapes(config.model).items():
        if at.pipeline in stages(name, plan):
            updated = compiled_box(name, shape, plan, at).shape
            found |= {name: updated, f"adam_m.{name}": updated, f"adam_v.{name}": updated}
            if config.micro_steps > 1:
                found[f"accu_grads.{name}"] = box(name, shape, plan, at).shape
    return found


def inference_slices(config: RunConfig, plan: Plan, rank: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights and KV caches of a rank in generation."""
    model, at = config.model, plan.coordinates(rank)
    found = {name: box(name, shape, plan, at).shape for name, shape in parameter_shapes(model).items()}
    cache = (rows, model.num_heads // plan.tensor, model.seq_length, model.head_size)
    if config.has_flash_generation:
        cache = (rows * cache_blocks(model.seq_length), CACHE_BLOCK, model.num_heads // plan.tensor, model.head_size)
    return found | {f"cache.{layer}.{kind}": cache for layer in range(model.num_layers) for kind in ("key", "value")}


def inference_messages(plan: Plan) -> Counter[Message]:
    """Return the number of messages of a rank in the prefill graph, which is the same in the decode graph."""
    if plan.tensor == 1:
        return Counter()
    found = Counter({("AllReduce", plan.tensor, f"layer {layer}", "forward"): 2 for layer in range(plan.num_layers)})
    if plan.vocab_parallel:
        found |= {
            ("AllReduce", plan.tensor, "embedding", "forward"): 1,
            ("AllGather", plan.tensor, "head and loss", "forward"): 1,
        }
    return found


def has_formula(config: RunConfig) -> bool:
    """Return whether `messages` can predict the messages of a run.

    It can't with sequence_parallel and either recompute or experts, because the compiler then adds gathers of its own.
    """
    return not (config.parallel.sequence_parallel and (config.parallel.recompute != "none" or config.model.num_experts))


def messages(config: RunConfig, plan: Plan, rank: int) -> Counter[Message]:
    """Return the number of messages of a rank in an optimizer step."""
    at, found = plan.coordinates(rank), Counter()
    calls = config.micro_steps * config.parallel.micro_batch_interleaved
    first, last, chunks = at.pipeline == 0, at.pipeline == plan.last_stage, config.loss_chunks

    def add(number: int, operation: str, ranks: int, part: str, phase: str) -> None:
        if ranks > 1:
            found[operation, ranks, part, phase] += number

    sums = ("ReduceScatter", "AllGather") if config.parallel.sequence_parallel else ("AllReduce",)
    for phase in ("forward", "backward"):
        for layer in plan.layers(at.pipeline):
            for operation in sums:
                add(2 * calls, operation, plan.tensor, f"layer {layer}", phase)
        if first:
            add(calls, "AllReduce", plan.vocab_parts, "embedding", phase)
        if last:
            if config.parallel.sequence_parallel:
                add(calls, "AllGather" if phase == "forward" else "ReduceScatter", plan.tensor, "head and loss", phase)
            # A loss by chunks computes its logits again, and with them the sums of all but the labels' logits.
            sums_of_rows = (5 if chunks > 1 else 3) if phase == "forward" else 2
            add(sums_of_rows * chunks * calls, "AllReduce", plan.vocab_parts, "head and loss", phase)
            # All parts of micro_batch_interleaved share the gradient of their losses' sums.
            of_losses = calls if phase == "forward" else config.micro_steps
            add(of_losses, "AllReduce", plan.data_ranks, "head and loss", phase)
    _of_experts(config, plan, at.pipeline, calls, add)
    sliced = sum(sliced_sums(config, plan, chunk) for chunk in plan.chunks(at.pipeline))
    add(calls * sliced, "AllGather", plan.tensor, "activations", "backward")
    for name, shape in parameter_shapes(config.model).items():
        if at.pipeline in stages(name, plan):
            _of_parameter(name, shape, plan, rank, add)
    if calls > 1:
        add(_inputs(config, first, last), "AllGather", plan.data_ranks, "batch", "forward")
    add(1 + config.parallel.has_float_status, "AllReduce", plan.world_size, "norm", "update")
    for number, out, back in zip(plan.sends(at.pipeline), ("Send", "Receive"), ("Receive", "Send"), strict=True):
        add(calls * number, out, plan.pipeline, "pipeline", "forward")
        add(calls * number, back, plan.pipeline, "pipeline", "backward")
    if first != last:  # the word table, and its gradient
        add(1, "Send" if first else "Receive", plan.pipeline, "pipeline", "forward")
        add(1, "Receive" if first else "Send", plan.pipeline, "pipeline", "backward")
    return found


def _of_experts(config: RunConfig, plan: Plan, stage: int, calls: int, add: Callable[..., None]) -> None:
    layers = [layer for layer in plan.layers(stage) if config.model.has_experts(layer)]
    for layer in layers:
        for phase in ("forward", "backward"):
            add(2 * calls, "AlltoAll", plan.expert, f"layer {layer}", phase)
        add(calls, "AllReduce", plan.data_ranks, f"layer {layer}", "forward")  # load-balancing loss
        if config.parallel.recompute == "full":  # the router's gradient needs what comes back from the experts
            add(2 * calls, "AlltoAll", plan.expert, f"layer {layer}", "forward")
            add(calls, "AllReduce", plan.tensor, f"layer {layer}", "forward")
    if layers:
        add(config.micro_steps, "AllReduce", plan.data_ranks, f"layer {layers[-1]}", "backward")


def _of_parameter(name: str, shape: tuple[int, ...], plan: Plan, rank: int, add: Callable[..., None]) -> None:
    """Add the messages of a parameter's gradient, and of its updated slices.

    The gradient is summed over all ranks with the same slice. If a parameter is whole on tensor-parallel ranks, each of
    them has a share of the gradient, so they take part too. With optimizer_shard the replicas first scatter their sum.
    """
    at = plan.coordinates(rank)
    same = plan.data if is_expert(name) else plan.data_ranks
    if tensor_axis(name, plan.vocab_parallel) is None:
        same *= plan.tensor
    held, updated = box(name, shape, plan, at), compiled_box(name, shape, plan, at)
    part = _part(name, plan)
    shards = held.size // updated.size
    if name == WORD_TABLE and at.pipeline > 0 and not plan.optimizer_shard:
        return  # the last stage sends its gradient to the first stage, which sums both
    add(1, "AllGather", shards, part, "weights")
    add(1, "ReduceScatter", shards, part, "gradients")
    add(1, "AllReduce", same // shards, part, "gradients")


def _part(name: str, plan: Plan) -> str:
    words = name.split(".")
    if words[1] == "blocks":
        return f"layer {words[2]}"
    if words[1] == "top_query_layer":
        return f"layer {plan.num_layers - 1}"
    return "final LayerNorm" if words[1] == "layernorm" else "embedding"


def _inputs(config: RunConfig, first: bool, last: bool) -> int:
    """Return how many arrays of a batch a stage uses.

    Every stage uses the attention mask and the dropout keys. The first stage embeds ids and positions, and the last one
    uses them for queries and labels. Only the last stage uses the loss mask.
    """
    return 1 + (2 if first or last else 0) + last + config.model.has_dropout
