"""What a rank holds and sends under a plan, computed before anything runs.

Weights, gradients and moments are added up, parameter by parameter, from the boxes of sharding.py. Communication is
counted from the cells of src/parallel/explicit. Activations are an estimate. docs/parallel.md has the formulas, and
tests/distributed/test_plan_reality.py compares them with real ranks. MindSpore is not imported here.
"""

import math
from collections import Counter
from dataclasses import dataclass

from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import box, is_of_own_tokens, optimizer_box, parameter_shapes, replicas, stages

ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT32 = INT32 = 4  # bytes

# How many times a rank of a ring of n ranks sends (n - 1) / n of a collective's payload.
_RING_PASSES = {"AllReduce": 2, "ReduceScatter": 1, "AllGather": 1, "AlltoAll": 1}


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank holds. The memory of libraries is not counted.

    Args:
        parameters: Number of elements (not bytes) of the weights.
        weights: Bytes of the weights, in their own dtype.
        gradients: Bytes of the float32 sums over micro-batches; with one micro-batch, of gradients in weights' dtype.
        moments: Bytes of both moments, in float32, of the parts that the rank updates.
        slices: Bytes of the copies that optimizer_shard makes of updated parts, where a part is less than what is held.
        activations: Estimated bytes of activations; see the function `activations`.
        moments_on_host: The moments are in the host's memory (parallel.optimizer_offload).
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
        """Number of bytes on the device."""
        on_device = 0 if self.moments_on_host else self.moments
        return self.weights + self.gradients + on_device + self.slices + self.activations


@dataclass(frozen=True)
class Communication:
    """What a rank passes to one kind of collective in an optimizer step.

    Args:
        kind: Purpose: tensor, data, pipeline, expert or tied embedding.
        operation: AllReduce, ReduceScatter, AllGather, AlltoAll or Exchange (between two neighbours).
        ranks: Number of ranks in the group.
        payload: Bytes of all calls together. An AllReduce counts its array once, a ReduceScatter or an AlltoAll its
            input, an AllGather its output, and an Exchange what goes to the neighbour. A CPU builds each of them from
            AllReduces and sends more, but the payload is counted in the same way.
    """

    kind: str
    operation: str
    ranks: int
    payload: int

    @property
    def sent(self) -> int:
        """Number of bytes that the rank sends, if the group uses a ring."""
        if self.operation == "Exchange":
            return self.payload
        return _RING_PASSES[self.operation] * self.payload * (self.ranks - 1) // self.ranks


def is_float32(name: str) -> bool:
    """Return whether a parameter is always float32, whatever model.param_init_dtype says."""
    return "layernorm" in name or name.endswith("embedding_table")


def bubble(stage_count: int, micro_batches: int) -> float:
    """Return the share of a step during which a stage of a 1F1B pipeline waits."""
    return (stage_count - 1) / (micro_batches + stage_count - 1)


def rank_memory(config: RunConfig, rank: int) -> RankMemory:
    """Return the memory that a rank needs."""
    plan = Plan.of(config.parallel, config.model)
    at = plan.coordinates(rank)
    summed = config.micro_steps > 1 or plan.pipeline > 1
    parameters = weights = gradients = moments = slices = 0
    for name, shape in _shapes_of_stage(config, plan, at.pipeline).items():
        held, updated = box(name, shape, plan, at), optimizer_box(name, shape, plan, at)
        parameters += held.size
        weights += held.size * _item_size(config.model, name)
        gradients += held.size * (FLOAT32 if summed else _item_size(config.model, name))
        moments += 2 * FLOAT32 * updated.size
        slices += updated.size * _item_size(config.model, name) if updated != held else 0
    return RankMemory(
        parameters,
        weights,
        gradients,
        moments,
        slices,
        activations(config, plan, at.pipeline),
        config.parallel.optimizer_offload,
    )


def weight_bytes(model: PanguAlphaConfig, plan: Plan, rank: int) -> int:
    """Return the bytes of the weights that a rank holds."""
    at = plan.coordinates(rank)
    return sum(
        box(name, shape, plan, at).size * _item_size(model, name)
        for name, shape in parameter_shapes(model).items()
        if at.pipeline in stages(name, plan)
    )


def _shapes_of_stage(config: RunConfig, plan: Plan, stage: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in parameter_shapes(config.model).items() if stage in stages(name, plan)}


def _item_size(model: PanguAlphaConfig, name: str) -> int:
    return FLOAT32 if is_float32(name) else ITEM_SIZE[model.param_init_dtype]


def _tokens(config: RunConfig) -> int:
    """Return the number of tokens of a micro-batch on one rank."""
    return config.training.batch_size * config.model.seq_length


def _expert_places(config: RunConfig) -> int:
    """Return how many tokens of a sequence all experts together can take.

    Empty places count, because they are computed and sent too.
    """
    model = config.model
    if not model.num_experts:
        return 0
    share = model.capacity_factor * model.expert_top_k / model.num_experts
    return model.num_experts * min(model.seq_length, math.ceil(share * model.seq_length))


def _hidden_bytes(config: RunConfig) -> int:
    """Return the bytes of a micro-batch's hidden states."""
    return _tokens(config) * config.model.hidden_size * ITEM_SIZE[config.model.compute_dtype]


def _sent_item_size(config: RunConfig) -> int:
    """Return the item size of hidden states when they are sent. MindSpore's CPU backend sends only float32."""
    return FLOAT32 if config.parallel.device_target == "CPU" else ITEM_SIZE[config.model.compute_dtype]


def _token_parts(config: RunConfig) -> int:
    """Return over how many tensor-parallel ranks sequence parallel spreads the tokens."""
    return config.parallel.tensor if config.parallel.sequence_parallel else 1


def activations(config: RunConfig, plan: Plan, stage: int) -> int:
    """Estimate the largest number of bytes that a rank of a stage keeps for its backward pass.

    The estimate counts ids, positions and byte masks of all micro-batches of the step, and the tensors of one
    micro-batch. A stage between the first and the last also keeps the input of each micro-batch in flight, because it
    computes its layers again from it. A pipeline of MindSpore's compiler keeps the tensors of each micro-batch in
    flight instead.
    """
    model, layers = config.model, plan.layers(stage)
    of_layers = [layer_activations(config, layer) for layer in layers]
    own_tokens = _hidden_bytes(config) // _token_parts(config)
    in_flight = min(plan.pipeline - stage, config.micro_steps)
    kept, computed_again = sum(of_layers), 0
    if config.parallel.recompute == "full":
        sliced = sliced_sums(config, plan, stage)
        kept = (2 * len(layers) - sliced) * own_tokens + sliced * own_tokens // plan.tensor
        if not config.is_semi_auto:
            kept += 2 * len(layers) * _hidden_bytes(config)  # outputs of both LayerNorms
        computed_again = max(of_layers)
    total = (in_flight if config.is_semi_auto else 1) * kept + computed_again
    total += config.micro_steps * _tokens(config) * (2 * INT32 + model.seq_length)
    total += _tokens(config) * model.seq_length * ITEM_SIZE[model.softmax_compute_dtype]  # mask, as a term of scores
    last = plan.pipeline - 1
    if stage == 0 and model.dropout_rate:
        total += _tokens(config) * model.hidden_size * FLOAT32  # dropout mask of the embedding
    if stage == last:
        final_norm_query_and_head = own_tokens + 2 * _hidden_bytes(config)
        logits_and_gradient = 2 * _tokens(config) * model.vocab_size * FLOAT32 // plan.vocab_parts
        total += final_norm_query_and_head + logits_and_gradient
    elif stage > 0 and not config.is_semi_auto:
        total += in_flight * own_tokens
    return total


def sliced_sums(config: RunConfig, plan: Plan, stage: int) -> int:
    """Return how many kept tensors of a stage the tensor-parallel ranks share out (recompute_slice_activation).

    MindSpore's compiler shares out the input of each second LayerNorm. If several micro-batches are in one graph, it
    also shares out the input of each first LayerNorm that is the result of another block.
    """
    if not config.parallel.recompute_slice_activation:
        return 0
    layers = plan.layers(stage)
    blocks = [layer for layer in layers[1:] if layer < plan.num_layers - 1]
    return len(layers) + (len(blocks) if config.micro_steps > 1 else 0)


def layer_activations(config: RunConfig, layer: int) -> int:
    """Return the bytes that a layer keeps of a micro-batch for its backward pass.

    These have the size tokens x hidden: the layer's input, the input of the second LayerNorm, the outputs of both
    LayerNorms and, with dropout, two masks. Tensor parallel splits these: queries, keys, values, the weighted sum of
    the values, the attention weights, and the feed-forward units before and after the activation. Experts keep their
    rows, two routing tables and a dropout mask of all tokens.
    """
    model, parallel = config.model, config.parallel
    tokens, item, dropout = _tokens(config), ITEM_SIZE[model.compute_dtype], bool(model.dropout_rate)
    hidden, own_tokens = _hidden_bytes(config), _hidden_bytes(config) // _token_parts(config)
    residual = (2 + dropout) * own_tokens + dropout * (hidden if model.has_experts(layer) else own_tokens)
    norm_outputs = 2 * hidden
    attention = 4 * hidden // parallel.tensor
    softmax_item = ITEM_SIZE[model.softmax_compute_dtype]
    drops_weights = bool(model.attention_dropout)
    cast_or_dropped = item if drops_weights or softmax_item != item else 0
    weights = (
        tokens
        * model.seq_length
        * model.num_heads
        // parallel.tensor
        * (softmax_item + cast_or_dropped + drops_weights * item)
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
    """Return what a rank sends in an optimizer step. Single numbers (loss, norm, overflow) are not counted."""
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
    """Return how many passes a layer makes for a micro-batch: forward, backward, and each recomputed forward pass."""
    return 2 + (config.parallel.recompute == "full") + (stage < plan.pipeline - 1)


def _tensor(config: RunConfig, plan: Plan, rank: int) -> list[Communication]:
    """Return the tensor-parallel communication of a step.

    The layers need sums for each micro-batch. Sequence parallel also sums, once a step, the gradients of the parameters
    that are applied to a rank's own tokens only.
    """
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
    """Return the payload of each operation that src/parallel/explicit/tensor_parallel.py attaches to a stage."""
    model, tokens, payload = config.model, _tokens(config), Counter()
    first, last = stage == 0, stage == plan.pipeline - 1
    layers, passes = plan.layers(stage), _passes(config, plan, stage)
    dense = [layer for layer in layers if not model.has_experts(layer)]
    with_experts = len(layers) - len(dense)
    row = model.hidden_size * _sent_item_size(config)
    if first and plan.vocab_parallel:
        payload["AllReduce"] += (1 if last else 2) * tokens * model.hidden_size * FLOAT32  # word embedding, forward
    if last:
        payload["AllReduce"] += tokens * row  # gradient of the query layer's queries
    if last and plan.vocab_parallel:
        payload["AllReduce"] += 2 * tokens * FLOAT32  # loss
        payload["AllGather"] += plan.tensor * tokens * FLOAT32  # largest logits
    payload["AllReduce"] += passes * with_experts * config.training.batch_size * _expert_places(config) * row
    # Attention and feed-forward layers need a sum in each pass. A head with a part of the vocabulary needs one in the
    # backward pass. A recomputed forward pass leaves out a layer's last sum, if nothing after it is recomputed and no
    # router's gradient needs it.
    of_head = last and plan.vocab_parallel
    sums = passes * (len(layers) + len(dense)) + of_head
    left_out = (config.parallel.recompute == "full") * len(dense) + (not last and layers[-1] in dense)
    if config.parallel.sequence_parallel:
        payload["ReduceScatter"] += (sums - left_out) * tokens * row
        # Each sum has one gather as its counterpart. The others are: a router's input or its gradient, the embedding's
        # gradient, and the input of a head with the whole vocabulary.
        payload["AllGather"] += (sums + passes * with_experts + first + last - of_head) * tokens * row
    else:
        payload["AllReduce"] += (sums - left_out) * tokens * row
    return payload


def _data(config: RunConfig, plan: Plan, rank: int) -> list[Communication]:
    """Return the communication of gradients and of updated parts. All of it is float32."""
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
    """Return the communication between neighbouring stages.

    Each boundary has one exchange for each micro-batch, and one more for each stage after it. In those only one of the
    neighbours has something to send, and the other one sends zeros.
    """
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
