"""What a rank holds and sends under a plan, computed before anything runs.

Weights, gradients and moments are added up, parameter by parameter, from the boxes of sharding.py. Communication is
counted from the cells of src/parallel/explicit. What a step needs beside that comes from explicit_memory.py or
compiled_memory.py. docs/parallel.md has the formulas, and tests/distributed/test_plan_reality.py compares them with
real ranks. MindSpore is not imported here.
"""

from collections import Counter
from dataclasses import dataclass

from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan import explicit_memory
from src.parallel.plan.compiled_memory import most_alive
from src.parallel.plan.plan import Plan
from src.parallel.plan.schedule import messages_to_stages
from src.parallel.plan.sharding import (
    box,
    compiled_box,
    is_of_own_tokens,
    optimizer_box,
    parameter_shapes,
    replicas,
    stages,
)
from src.parallel.plan.sizes import (
    FLOAT32,
    ITEM_SIZE,
    expert_places,
    item_size,
    shapes_of_stage,
    token_count,
    token_parts,
)

# How many times a rank of a ring of n ranks sends (n - 1) / n of a collective's payload.
_RING_PASSES = {"AllReduce": 2, "ReduceScatter": 1, "AllGather": 1, "AlltoAll": 1}


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank needs in an optimizer step. The memory of libraries is not counted.

    The first three are held from step to step. The others are an estimate: with semi_auto, of the moment of a step that
    needs most.

    Args:
        parameters: Number of elements (not bytes) of the weights.
        weights: Bytes of the weights that are held, in their own dtype. With semi_auto and optimizer_shard a rank holds
            only the parts that it updates.
        sums: Bytes of the float32 sums of gradients over micro-batches; 0 with one micro-batch.
        moments: Bytes of both moments, in float32, of the parts that the rank updates.
        copies: Bytes of weights beside those held. Explicit: of updated parts, with optimizer_shard. semi_auto: weights
            in the compute dtype, and weights that are gathered.
        gradients: Bytes of gradients that are not sums, and with semi_auto of the temporary arrays of the update.
        activations: Bytes that the forward pass keeps, of what is computed again, and of the batch. On a CPU with
            bfloat16 also of rounded operands.
        logits: Bytes of the logits and of arrays of their size.
        moments_on_host: The moments are in the host's memory (parallel.optimizer_offload).
        moment: The moment that needs most (semi_auto): loss, backward or update.
    """

    parameters: int
    weights: int
    sums: int
    moments: int
    copies: int
    gradients: int
    activations: int
    logits: int
    moments_on_host: bool
    moment: str = ""

    @property
    def held(self) -> int:
        """Number of bytes that the device holds from step to step."""
        return self.weights + self.sums + (0 if self.moments_on_host else self.moments)

    @property
    def total(self) -> int:
        """Number of bytes on the device."""
        return self.held + self.copies + self.gradients + self.activations + self.logits


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


def bubble(stage_count: int, micro_batches: int, virtual_stages: int = 1) -> float:
    """Return the share of a step during which a stage of a 1F1B pipeline waits.

    It waits for the passes of a micro-batch through one chunk on each other stage. In a step it makes such passes for
    each of its chunks and micro-batches.
    """
    return (stage_count - 1) / (micro_batches * virtual_stages + stage_count - 1)


def rank_memory(config: RunConfig, rank: int) -> RankMemory:
    """Return the memory that a rank needs."""
    plan = Plan.of(config.parallel, config.model)
    at = plan.coordinates(rank)
    compiled, summed = config.is_semi_auto, config.micro_steps > 1
    parameters = weights = sums = moments = copies = gradients = 0
    for name, shape in shapes_of_stage(config, plan, at.pipeline).items():
        held, size = box(name, shape, plan, at), item_size(config.model, name)
        updated = (compiled_box if compiled else optimizer_box)(name, shape, plan, at)
        parameters += held.size
        weights += (updated if compiled else held).size * size
        sums += held.size * FLOAT32 if summed else 0
        moments += 2 * FLOAT32 * updated.size
        copies += updated.size * size if updated != held else 0
        gradients += 0 if summed else held.size * size
    on_host = config.parallel.optimizer_offload
    if compiled:
        most = most_alive(config, plan, at)
        alive = most.copies, most.gradients, most.activations, most.logits
        return RankMemory(parameters, weights, sums, moments, *alive, on_host, most.name)
    activations = explicit_memory.activations(config, plan, at.pipeline)
    logits = explicit_memory.logits(config, plan, at.pipeline)
    return RankMemory(parameters, weights, sums, moments, copies, gradients, activations, logits, on_host)


def weight_bytes(model: PanguAlphaConfig, plan: Plan, rank: int) -> int:
    """Return the bytes of the weights that a rank holds."""
    at = plan.coordinates(rank)
    return sum(
        box(name, shape, plan, at).size * item_size(model, name)
        for name, shape in parameter_shapes(model).items()
        if at.pipeline in stages(name, plan)
    )


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


def _sent_item_size(config: RunConfig) -> int:
    """Return the item size of hidden states when they are sent. MindSpore's CPU backend sends only float32."""
    return FLOAT32 if config.parallel.device_target == "CPU" else ITEM_SIZE[config.model.compute_dtype]


def _passes(plan: Plan, chunk: int) -> int:
    """Return how many passes a layer makes for a micro-batch.

    They are the forward and the backward pass. A chunk that is not the last makes the forward pass again.
    """
    return 2 + (chunk < plan.num_chunks - 1)


def _expert_passes(config: RunConfig, plan: Plan, layer: int) -> tuple[int, int]:
    """Return how often a layer with experts sends tokens to them and, in whatever way, their outputs back.

    Recomputed experts do both again. Then the forward pass that a chunk makes again has no use for the last outputs.
    """
    chunk, full = plan.chunk_of_layer(layer), config.parallel.recompute == "full"
    there = _passes(plan, chunk) + full
    return there, there - (full and chunk < plan.num_chunks - 1 and layer == plan.layers_of_chunk(chunk)[-1])


def _tensor(config: RunConfig, plan: Plan, rank: int) -> list[Communication]:
    """Return the tensor-parallel communication of a step.

    The layers need sums for each micro-batch. Sequence parallel also sums, once a step, the gradients of the parameters
    that are applied to a rank's own tokens only.
    """
    if plan.tensor == 1:
        return []
    at = plan.coordinates(rank)
    payload: Counter[str] = Counter()
    for chunk in plan.chunks(at.pipeline):
        for operation, size in _tensor_of_micro_batch(config, plan, chunk).items():
            payload[operation] += config.micro_steps * size
    if config.parallel.sequence_parallel:
        payload["AllReduce"] += FLOAT32 * sum(
            box(name, shape, plan, at).size
            for name, shape in shapes_of_stage(config, plan, at.pipeline).items()
            if is_of_own_tokens(name)
        )
    return [
        Communication("tensor", operation, plan.tensor, payload[operation])
        for operation in ("AllReduce", "ReduceScatter", "AllGather")
    ]


def _tensor_of_micro_batch(config: RunConfig, plan: Plan, chunk: int) -> Counter[str]:
    """Return the payload of each operation that src/parallel/explicit/tensor_parallel.py attaches to a chunk."""
    model, tokens, payload = config.model, token_count(config), Counter()
    first, last = chunk == 0, chunk == plan.num_chunks - 1
    layers, passes = plan.layers_of_chunk(chunk), _passes(plan, chunk)
    dense = [layer for layer in layers if not model.has_experts(layer)]
    experts = [layer for layer in layers if layer not in dense]
    row = model.hidden_size * _sent_item_size(config)
    if first and plan.vocab_parallel:
        payload["AllReduce"] += (1 if last else 2) * tokens * model.hidden_size * FLOAT32  # word embedding, forward
    if last:
        payload["AllReduce"] += tokens * row  # gradient of the query layer's queries
    if last and plan.vocab_parallel:
        payload["AllReduce"] += 2 * tokens * FLOAT32  # loss
        payload["AllGather"] += plan.tensor * tokens * FLOAT32  # largest logits
    outputs = sum(_expert_passes(config, plan, layer)[1] for layer in experts)
    payload["AllReduce"] += outputs * config.training.batch_size * expert_places(config) * row
    # Attention and feed-forward layers need a sum in each pass. A head with a part of the vocabulary needs one in the
    # backward pass. The forward pass that a chunk makes again has no use for the last sum. Recomputed layers need none,
    # since what follows their sums is kept.
    of_head = last and plan.vocab_parallel
    sums = passes * (len(layers) + len(dense)) + of_head
    left_out = not last and layers[-1] in dense
    if config.parallel.sequence_parallel:
        payload["ReduceScatter"] += (sums - left_out) * tokens * row
        # Each sum has one gather as its counterpart. The others are: a router's input or its gradient, the embedding's
        # gradient, and the input of a head with the whole vocabulary.
        payload["AllGather"] += (sums + passes * len(experts) + first + last - of_head) * tokens * row
    else:
        payload["AllReduce"] += (sums - left_out) * tokens * row
    return payload


def _data(config: RunConfig, plan: Plan, rank: int) -> list[Communication]:
    """Return the communication of gradients and of updated parts. All of it is float32."""
    at = plan.coordinates(rank)
    payload: Counter[tuple[str, int]] = Counter()
    tied = 0
    for name, shape in shapes_of_stage(config, plan, at.pipeline).items():
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
    """Return the communication between neighbouring stages."""
    own_tokens = token_count(config) // token_parts(config) * config.model.hidden_size * _sent_item_size(config)
    return [Communication("pipeline", "Exchange", 2, messages_to_stages(config, plan, stage) * own_tokens)]


def _expert(config: RunConfig, plan: Plan, stage: int) -> list[Communication]:
    if plan.expert == 1:
        return []
    model = config.model
    exchanges = sum(
        sum(_expert_passes(config, plan, layer)) for layer in plan.layers(stage) if model.has_experts(layer)
    )
    rows = config.training.batch_size * expert_places(config)
    payload = rows * model.hidden_size * _sent_item_size(config)
    payload *= exchanges * config.micro_steps
    return [Communication("expert", "AlltoAll", plan.expert, payload)]
