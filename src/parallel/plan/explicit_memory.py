"""An estimate of the activations of the explicit cells. docs/parallel.md has the formulas."""

from src.pangu_alpha_config import RunConfig
from src.parallel.plan.plan import Plan
from src.parallel.plan.schedule import in_flight
from src.parallel.plan.sizes import (
    FLOAT32,
    INT32,
    ITEM_SIZE,
    attention_bytes,
    attention_input_bytes,
    feed_forward_bytes,
    hidden_bytes,
    mask_bytes,
    token_count,
    token_parts,
)


def activations(config: RunConfig, plan: Plan, stage: int) -> int:
    """Estimate the largest number of bytes that a rank of a stage keeps for its backward pass, without `logits`.

    The estimate counts ids, positions and byte masks of all micro-batches of the step, and the tensors of one
    micro-batch in one chunk. Of a chunk between the first and the last, a rank also keeps the input of each micro-batch
    in flight, because it computes its layers again from it.
    """
    model, chunks = config.model, plan.chunks(stage)
    own_tokens = hidden_bytes(config) // token_parts(config)
    kept = max(sum(kept_by_layer(config, layer) for layer in plan.layers_of_chunk(chunk)) for chunk in chunks)
    computed_again = max(layer_activations(config, layer) for layer in plan.layers(stage))
    total = kept + (computed_again if config.parallel.recompute != "none" else 0)
    total += config.micro_steps * (token_count(config) * 2 * INT32 + attention_input_bytes(config))
    total += mask_bytes(config) + rounded_operands(config, plan, stage)
    if stage == 0 and model.dropout_rate:
        total += token_count(config) * model.hidden_size * FLOAT32  # dropout mask of the embedding
    if stage == plan.last_stage:  # inputs of the final LayerNorm, of the queries and of the head
        total += own_tokens + 2 * hidden_bytes(config)
    for chunk, number in zip(chunks, in_flight(config, plan, stage), strict=True):
        total += number * own_tokens if 0 < chunk < plan.num_chunks - 1 else 0
    return total


def rounded_operands(config: RunConfig, plan: Plan, stage: int) -> int:
    """Return the bytes that a CPU keeps for operands that are rounded to bfloat16: the largest of each kind.

    The kinds are the first and the second operand of a product, and the gradient of a product.
    """
    if not config.has_half_products:
        return 0
    hidden, tokens = config.model.hidden_size, token_count(config)
    units, words = config.model.ffn_hidden_size // plan.tensor, 0
    if stage == plan.last_stage:
        words = config.model.vocab_size // plan.vocab_parts
    first = max(units * tokens, units * hidden, tokens * hidden)
    second = hidden * max(units, words, tokens)
    return ITEM_SIZE["bfloat16"] * (first + second + tokens * max(units, words, hidden))


def logits(config: RunConfig, plan: Plan, stage: int) -> int:
    """Return the bytes of the logits and their gradient, which the last stage has, of one chunk at a time."""
    rows = token_count(config) // config.loss_chunks if stage == plan.last_stage else 0
    return 2 * rows * config.model.vocab_size * FLOAT32 // plan.vocab_parts


def kept_by_layer(config: RunConfig, layer: int) -> int:
    """Return the bytes that a layer keeps of a micro-batch, with what is computed again left out."""
    hidden, own_tokens = hidden_bytes(config), hidden_bytes(config) // token_parts(config)
    if config.parallel.recompute == "full":  # the inputs and the outputs of both LayerNorms
        return 2 * own_tokens + 2 * hidden
    kept = layer_activations(config, layer)
    if config.parallel.recompute == "selective":
        units = 0 if config.model.has_experts(layer) else feed_forward_bytes(config, layer) // 2
        fused = config.has_flash_attention or config.has_compiled_attention
        kept -= units + (0 if fused else attention_bytes(config))
    return kept


def layer_activations(config: RunConfig, layer: int) -> int:
    """Return the bytes that a layer keeps of a micro-batch for its backward pass, if nothing is computed again.

    These have the size tokens x hidden: the layer's input, the input of the second LayerNorm, the outputs of both
    LayerNorms and, with dropout, two masks. Tensor parallel splits these: queries, keys, values, the weighted sum of
    the values, the attention weights, and the feed-forward units before and after the activation. Experts keep their
    rows, two routing tables and a dropout mask of all tokens.
    """
    model, dropout = config.model, bool(config.model.dropout_rate)
    hidden, own_tokens = hidden_bytes(config), hidden_bytes(config) // token_parts(config)
    residual = (2 + dropout) * own_tokens + dropout * (hidden if model.has_experts(layer) else own_tokens)
    attention = 4 * hidden // config.parallel.tensor
    return residual + 2 * hidden + attention + attention_bytes(config) + feed_forward_bytes(config, layer)
