"""What a rank holds and sends under a plan, before anything runs.

Weights, gradients and moments are added up, parameter by parameter, from the boxes of sharding.py. Communication counts
the operations of this folder's cells; activations are an estimate. docs/parallel.md has the formulas, and
tests/distributed/test_plan_reality.py holds them against real ranks. Nothing here needs MindSpore.
"""

import math
from collections import Counter
from dataclasses import dataclass

from src.pangu_alpha_config import RunConfig
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import box, is_of_own_tokens, optimizer_box, parameter_shapes, replicas, stages

ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT32 = INT32 = 4  # bytes

# How often a rank of n sends (n - 1) / n of a collective's payload when all send around a ring.
_RING_PASSES = {"AllReduce": 2, "ReduceScatter": 1, "AllGather": 1, "AlltoAll": 1}


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds, but for what its libraries need.

    Args:
        parameters: Numbers, not bytes, of the weights.
        weights: In their own dtype.
        gradients: Float32 sums over micro-batches; of a single micro-batch, gradients in the weights' dtype.
        moments: Both, float32, of the parts that the rank updates.
        slices: With optimizer_shard: a copy of each part that the rank updates and that is less than what it holds.
        activations: Estimated; see `activations`.
        moments_on_host: Moments lie in the host's memory (parallel.optimizer_offload).
    """

    parameters: int
    weights: int
    gradients: int
    moments: int
    slices: int
    activations: int
    moments_on_host: bool

    @property
    def total(self) -> int:
        """Bytes on the device."""
        on_device = 0 if self.moments_on_host else self.moments
        return self.weights + self.gradients + on_device + self.slices + self.activations


@dataclass(frozen=True)
class Communication:
    """What a rank passes to one kind of collective in an optimizer step.

    Args:
        kind: What for: tensor, data, pipeline, expert or tied embedding.
        operation: AllReduce, ReduceScatter, AllGather, AlltoAll or Exchange (of two neighbours).
        ranks: Of the group.
        payload: Bytes of all calls together. An AllReduce counts its array once, a ReduceScatter or an AlltoAll what
            goes in, an AllGather what comes out, an Exchange what goes to the neighbour. So on a CPU, too, though
            each is made of AllReduce there and sends more.
    """

    kind: str
    operation: str
    ranks: int
    payload: int

    @property
    def sent(self) -> int:
        """Bytes that leave the rank, by a ring where all take part."""
        if self.operation == "Exchange":
            return self.payload
        return _RING_PASSES[self.operation] * self.payload * (self.ranks - 1) // self.ranks


def is_float32(name: str) -> bool:
    """Whether a parameter is float32 whatever model.param_init_dtype is."""
    return "layernorm" in name or name.endswith("embedding_table")


def bubble(stage_count: int, micro_batches: int) -> float:
    """The share of a step in which a stage of a 1F1B pipeline waits."""
    return (stage_count - 1) / (micro_batches + stage_count - 1)


def rank_memory(config: RunConfig, rank: int) -> RankMemory:
    """What a rank holds."""
    plan = Plan.of(config.parallel, config.model)
    at = plan.coordinates(rank)
    summed = config.micro_steps > 1 or plan.pipeline > 1
    parameters = weights = gradients = moments = slices = 0
    for name, shape in _shapes_of_stage(config, plan, at.pipeline).items():
        held, updated = box(name, shape, plan, at), optimizer_box(name, shape, plan, at)
        parameters += held.size
        weights += held.size * _item_size(config, name)
        gradients += held.size * (FLOAT32 if summed else _item_size(config, name))
        moments += 2 * FLOAT32 * updated.size
        slices += updated.size * _item_size(config, name) if updated != held else 0
    return RankMemory(
        parameters,
        weights,
        gradients,
        moments,
        slices,
        activations(config, plan, at.pipeline),
        config.parallel.optimizer_offload,
    )


def _shapes_of_stage(config: RunConfig, plan: Plan, stage: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in parameter_shapes(config.model).items() if stage in stages(name, plan)}


def _item_size(config: RunConfig, name: str) -> int:
    return FLOAT32 if is_float32(name) else ITEM_SIZE[config.model.param_init_dtype]


def _tokens(config: RunConfig) -> int:
    """Of a rank and micro-batch."""
    return config.training.batch_size * config.model.seq_length


def _expert_places(config: RunConfig) -> int:
    """Tokens of a sequence that all experts together have place for; what stays empty is computed and sent as well."""
    model = config.model
    if not model.num_experts:
        return 0
    share = model.capacity_factor * model.expert_top_k / model.num_experts
    return model.num_experts * min(model.seq_length, math.ceil(share * model.seq_length))


def _hidden_bytes(config: RunConfig) -> int:
    """Of the residual stream of a micro-batch."""
    return _tokens(config) * config.model.hidden_size * ITEM_SIZE[config.model.compute_dtype]


def _sent_item_size(config: RunConfig) -> int:
    """Of hidden states under way: MindSpore's CPU backend sends float32 alone."""
    return FLOAT32 if config.parallel.device_target == "CPU" else ITEM_SIZE[config.model.compute_dtype]


def _token_parts(config: RunConfig) -> int:
    """Tensor-parallel ranks over which the tokens between layers' products are spread."""
    return config.parallel.tensor if config.parallel.sequence_parallel else 1


def activations(config: RunConfig, plan: Plan, stage: int) -> int:
    """Bytes that a rank of a stage keeps for its backward pass, at most: an estimate.

    The batches of a step: ids, positions, masks of bytes. One micro-batch's tensors. In a pipeline but for its last
    stage also what came into the stage with each micro-batch in flight, from which its layers are computed again; where
    the compiler makes the pipeline, it keeps the tensors of each of them.
    """
    model, layers = config.model, plan.layers(stage)
    of_layers = [layer_activations(config, layer) for layer in layers]
    own_tokens = _hidden_bytes(config) // _token_parts(config)
    in_flight = min(plan.pipeline - stage, config.micro_steps)
    kept, computed_again = sum(of_layers), 0
    if config.parallel.recompute:
        sliced = sliced_sums(config, plan, stage)
        kept = (2 * len(layers) - sliced) * own_tokens + sliced * own_tokens // plan.tensor
        if not config.is_semi_auto:
            kept += 2 * len(layers) * _hidden_bytes(config)  # both LayerNorms' outputs
        computed_again = max(of_layers)
    total = (in_flight if config.is_semi_auto else 1) * kept + computed_again
    total += config.micro_steps * _tokens(config) * (2 * INT32 + model.seq_length)
    total += _tokens(config) * model.seq_length * ITEM_SIZE[model.softmax_compute_dtype]  # what masks add to scores
    last = plan.pipeline - 1
    if stage == 0 and model.dropout_rate:
        total += _tokens(config) * model.hidden_size * FLOAT32  # the embedding's mask
    if stage == last:
        final_norm_query_and_head = own_tokens + 2 * _hidden_bytes(config)
        logits_and_gradient = 2 * _tokens(config) * model.vocab_size * FLOAT32 // plan.vocab_parts
        total += final_norm_query_and_head + logits_and_gradient
    elif stage > 0 and not config.is_semi_auto:
        total += in_flight * own_tokens
    return total


def sliced_sums(config: RunConfig, plan: Plan, stage: int) -> int:
    """Of what the layers of a stage keep of a micro-batch, and compute the rest from, how many tensors tensor-parallel
    ranks share out, as MindSpore's compiler does it: what goes into each second LayerNorm; and into each first one
    where that is another block's result, if several micro-batches have one graph."""
    if not config.parallel.recompute_slice_activation:
        return 0
    layers = plan.layers(stage)
    blocks = [layer for layer in layers[1:] if layer < plan.num_layers - 1]
    return len(layers) + (len(blocks) if config.micro_steps > 1 else 0)


def layer_activations(config: RunConfig, layer: int) -> int:
    """Bytes that a layer keeps of a micro-batch for its backward pass.

    Tokens x hidden: its input, that of the second LayerNorm, both LayerNorms' outputs, with dropout two masks; split by
    tensor parallel: queries, keys, values, what attention mixed of them, the feed-forward units before and after their
    activation; and the attention weights. Experts have rows of their own, two routing tables, and a mask of all tokens.
    """
    model, parallel = config.model, config.parallel
    tokens, item, dropout = _tokens(config), ITEM_SIZE[model.compute_dtype], bool(model.dropout_rate)
    hidden, own_tokens = _hidden_bytes(config), _hidden_bytes(config) // _token_parts(config)
    residual = (2 + dropout) * own_tokens + dropout * (hidden if model.has_experts(layer) else own_tokens)
    norm_outputs = 2 * hidden
    attention = 4 * hidden // parallel.tensor
    softmax_item = ITEM_SIZE[model.softmax_compute_dtype]
    cast_or_dropped = item if dropout or softmax_item != item else 0
    weights = (
        tokens
        * model.seq_length
        * model.num_heads
        // parallel.tensor
        * (softmax_item + cast_or_dropped + dropout * item)
    )
    if model.has_experts(layer):
        places = _expert_places(config)
        rows = config.training.batch_size * places
        routing = 2 * tokens * places * FLOAT32
        feed_forward = routing + 2 * rows * (model.hidden_size + model.ffn_hidden_size // parallel.tensor) * item
    else:
        feed_forward = 2 * tokens * model.ffn_hidden_size // parallel.tensor * item
    return residual + norm_outputs + attention + weights + feed_forward


def communication(config: RunConfig, rank: int) -> list[Communication]:
    """What a rank sends in an optimizer step; single numbers (loss, norm, overflow) left out."""
    plan = Plan.of(config.parallel, config.model)
    stage = plan.coordinates(rank).pipeline
    found = [
        *_tensor(config, plan, rank),
        *_data(config, plan, rank),
        *_pipeline(config, plan, stage),
        *_expert(config, plan, stage),
    ]
    return [one for one in found if one.payload]


def _passes(config: RunConfig, plan: Plan, stage: int) -> int:
    """Forward and backward passes of a layer and micro-batch; each forward pass that is computed again counts."""
    return 2 + config.parallel.recompute + (stage < plan.pipeline - 1)


def _tensor(config: RunConfig, plan: Plan, rank: int) -> list[Communication]:
    """Sums within the layers of each micro-batch; of a step, gradients of what met a rank's own tokens alone."""
    if plan.tensor == 1:
        return []
    at = plan.coordinates(rank)
    of_micro_batch = _tensor_of_micro_batch(config, plan, at.pipeline)
    payload = Counter({operation: config.micro_steps * size for operation, size in of_micro_batch.items()})
    if config.parallel.sequence_parallel:
        payload["AllReduce"] += FLOAT32 * sum(
            box(name, shape, plan, at).size
            for name, shape in _shapes_of_stage(config, plan, at.pipeline).items()
            if is_of_own_tokens(name)
        )
    return [
        Communication("tensor", operation, plan.tensor, payload[operation])
        for operation in ("AllReduce", "ReduceScatter", "AllGather")
    ]


def _tensor_of_micro_batch(config: RunConfig, plan: Plan, stage: int) -> Counter[str]:
    """Payloads, by operation, of what src/parallel/explicit/tensor_parallel.py attaches to a stage."""
    model, tokens, payload = config.model, _tokens(config), Counter()
    first, last = stage == 0, stage == plan.pipeline - 1
    layers, passes = plan.layers(stage), _passes(config, plan, stage)
    dense = [layer for layer in layers if not model.has_experts(layer)]
    with_experts = len(layers) - len(dense)
    row = model.hidden_size * _sent_item_size(config)
    if first and plan.vocab_parallel:
        payload["AllReduce"] += (1 if last else 2) * tokens * model.hidden_size * FLOAT32  # words, forward
    if last:
        payload["AllReduce"] += tokens * row  # the queries' gradient
    if last and plan.vocab_parallel:
        payload["AllReduce"] += 2 * tokens * FLOAT32  # the loss
        payload["AllGather"] += plan.tensor * tokens * FLOAT32  # largest logits
    payload["AllReduce"] += passes * with_experts * config.training.batch_size * _expert_places(config) * row
    # Attention and feed-forward layers take a sum in each pass; the head, of its part of the vocabulary, backwards. A
    # forward pass computed again leaves out a layer's last sum, if nothing after it is computed again and no router's
    # gradient needs it.
    of_head = last and plan.vocab_parallel
    sums = passes * (len(layers) + len(dense)) + of_head
    left_out = config.parallel.recompute * len(dense) + (not last and layers[-1] in dense)
    if config.parallel.sequence_parallel:
        payload["ReduceScatter"] += (sums - left_out) * tokens * row
        # Each sum's counterpart; a router's input, or its gradient; backwards the embedding's gradient; what goes
        # into a head of all words.
        payload["AllGather"] += (sums + passes * with_experts + first + last - of_head) * tokens * row
    else:
        payload["AllReduce"] += (sums - left_out) * tokens * row
    return payload


def _data(config: RunConfig, plan: Plan, rank: int) -> list[Communication]:
    """Gradients, and what was updated; all in float32."""
    at = plan.coordinates(rank)
    payload: Counter[tuple[str, int]] = Counter()
    tied = 0
    for name, shape in _shapes_of_stage(config, plan, at.pipeline).items():
        held, ranks = box(name, shape, plan, at), replicas(name, plan, at)[1]
        cut = optimizer_box(name, shape, plan, at) != held
        for operation in ("ReduceScatter", "AllGather") if cut else ("AllReduce",):
            payload[operation, ranks] += held.size * FLOAT32
        if len(stages(name, plan)) > 1:
            tied += held.size * FLOAT32
    return [
        *(Communication("data", operation, ranks, size) for (operation, ranks), size in payload.items() if ranks > 1),
        Communication("tied embedding", "AllReduce", 2, tied),
    ]


def _pipeline(config: RunConfig, plan: Plan, stage: int) -> list[Communication]:
    """Each boundary of two stages has an exchange a micro-batch, and one for each stage after it in which only one of
    them has something to send; the other one then sends zeros."""
    boundaries = [lower for lower in (stage - 1, stage) if 0 <= lower < plan.pipeline - 1]
    exchanges = sum(config.micro_steps + plan.pipeline - 1 - lower for lower in boundaries)
    own_tokens = _tokens(config) // _token_parts(config) * config.model.hidden_size * _sent_item_size(config)
    return [Communication("pipeline", "Exchange", 2, exchanges * own_tokens)]


def _expert(config: RunConfig, plan: Plan, stage: int) -> list[Communication]:
    if plan.expert == 1:
        return []
    model = config.model
    layers = sum(model.has_experts(layer) for layer in plan.layers(stage))
    if not layers:
        return []
    rows = config.training.batch_size * _expert_places(config)
    payload = rows * model.hidden_size * _sent_item_size(config)
    payload *= 2 * _passes(config, plan, stage) * config.micro_steps * layers
    return [Communication("expert", "AlltoAll", plan.expert, payload)]
