"""Sizes that memory and communication are made of: items, tokens, hidden states, places of experts."""

import math

from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import parameter_shapes, stages

ITEM_SIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT32 = INT32 = 4  # bytes


def is_float32(name: str) -> bool:
    """Return whether a parameter is always float32, whatever model.param_init_dtype says."""
    return "layernorm" in name or name.endswith("embedding_table")


def item_size(model: PanguAlphaConfig, name: str) -> int:
    """Return the bytes of an element of a parameter."""
    return FLOAT32 if is_float32(name) else ITEM_SIZE[model.param_init_dtype]


def shapes_of_stage(config: RunConfig, plan: Plan, stage: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the whole parameters of a stage, by name."""
    return {name: shape for name, shape in parameter_shapes(config.model).items() if stage in stages(name, plan)}


def token_count(config: RunConfig) -> int:
    """Return the number of tokens of a micro-batch on one rank."""
    return config.training.batch_size * config.model.seq_length


def token_parts(config: RunConfig) -> int:
    """Return over how many tensor-parallel ranks sequence parallel spreads the tokens."""
    return config.parallel.tensor if config.parallel.sequence_parallel else 1


def hidden_bytes(config: RunConfig) -> int:
    """Return the bytes of a micro-batch's hidden states."""
    return token_count(config) * config.model.hidden_size * ITEM_SIZE[config.model.compute_dtype]


def pairs(config: RunConfig) -> int:
    """Return the number of attention weights of a layer and a micro-batch on one rank."""
    model = config.model
    return token_count(config) * model.seq_length * model.num_heads // config.parallel.tensor


def expert_places(config: RunConfig) -> int:
    """Return how many tokens of a sequence all experts together can take.

    Empty places count, because they are computed and sent too.
    """
    model = config.model
    if not model.num_experts:
        return 0
    share = model.capacity_factor * model.expert_top_k / model.num_experts
    return model.num_experts * min(model.seq_length, math.ceil(share * model.seq_length))


def feed_forward_bytes(config: RunConfig, layer: int) -> int:
    """Return the bytes of a layer's feed-forward units, before and after the activation.

    Experts keep their rows, and two routing tables.
    """
    model, tensor = config.model, config.parallel.tensor
    item = ITEM_SIZE[model.compute_dtype]
    if not model.has_experts(layer):
        return 2 * token_count(config) * model.ffn_hidden_size // tensor * item
    places = expert_places(config)
    rows = config.training.batch_size * places
    routing = 2 * token_count(config) * places * FLOAT32
    return routing + 2 * rows * (model.hidden_size + model.ffn_hidden_size // tensor) * item


def attention_bytes(config: RunConfig) -> int:
    """Return the bytes that a layer's attention keeps beside queries, keys, values and their weighted sums.

    Plain attention keeps its weights, after the softmax and in the compute dtype or dropped, and the mask of dropout.
    Fused attention keeps two times 8 float32 numbers for each token and head, and a bit for each weight if some drop.
    The compiled attention of CPUs keeps one number for each token and head.
    """
    model, drops = config.model, bool(config.model.attention_dropout)
    if config.has_compiled_attention:
        return FLOAT32 * token_count(config) * model.num_heads // config.parallel.tensor
    if config.has_flash_attention:
        statistics = 2 * 8 * FLOAT32 * token_count(config) * model.num_heads // config.parallel.tensor
        return statistics + drops * pairs(config) // 8
    item, softmax_item = ITEM_SIZE[model.compute_dtype], ITEM_SIZE[model.softmax_compute_dtype]
    return pairs(config) * (softmax_item + (item if drops or softmax_item != item else 0) + drops * item)


def attention_input_bytes(config: RunConfig) -> int:
    """Return the bytes of what attention gets of a micro-batch: a mask, numbers of documents, or ends of documents."""
    return {
        "mask": token_count(config) * config.model.seq_length,
        "documents": token_count(config) * INT32,
        "document ends": config.training.batch_size * config.parallel.most_documents * 8,
    }[config.attention_input]


def mask_bytes(config: RunConfig) -> int:
    """Return the bytes of the mask of a micro-batch that attention makes of its input, for all layers."""
    if config.has_compiled_attention or config.attention_input == "document ends":
        return 0
    of_pair = 1 if config.has_flash_attention else ITEM_SIZE[config.model.softmax_compute_dtype]
    return token_count(config) * config.model.seq_length * of_pair
