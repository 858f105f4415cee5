"""What the graph of MindSpore's compiler (semi_auto) keeps alive at once, beside what a rank holds between steps.

The formulas follow compiled graphs, and `--dry_run` compares them with the graph at hand (docs/parallel.md has the
table). A step has four moments that can need most. MindSpore is not imported here.
"""

from dataclasses import dataclass
from functools import cached_property

from src.pangu_alpha_config import RunConfig
from src.parallel.plan.plan import Coordinates, Plan
from src.parallel.plan.schedule import in_flight
from src.parallel.plan.sharding import Box, box, compiled_box
from src.parallel.plan.sizes import (
    FLOAT32,
    INT32,
    ITEM_SIZE,
    attention_bytes,
    attention_input_bytes,
    feed_forward_bytes,
    hidden_bytes,
    is_float32,
    item_size,
    mask_bytes,
    pairs,
    shapes_of_stage,
    token_count,
    token_parts,
)

_LOGITS = 5  # float32 arrays of the logits' size that the loss and its gradient have at once
_UPDATE = 4  # float32 arrays of a half-precision parameter's size that its update has at once


@dataclass(frozen=True)
class Moment:
    """Bytes that are alive at a moment of a step.

    Args:
        name: Which moment it is: loss, backward or update.
        copies: Weights in the compute dtype, and weights that optimizer_shard gathers.
        gradients: Gradients, and the temporary arrays of the update.
        activations: What the forward pass keeps, what is computed again, gradients of activations, and the batch.
        logits: The logits, and arrays of their size in the loss.
    """

    name: str
    copies: int = 0
    gradients: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """Number of bytes."""
        return self.copies + self.gradients + self.activations + self.logits


def most_alive(config: RunConfig, plan: Plan, at: Coordinates) -> Moment:
    """Return what is alive at the moment of an optimizer step at which it is most."""
    stage = _Stage(config, plan, at)
    return max((stage.loss(), stage.first_backward(), stage.last_backward(), stage.update()), key=lambda one: one.total)


def sliced_sums(config: RunConfig, plan: Plan, chunk: int) -> int:
    """Return how many kept tensors of a chunk the tensor-parallel ranks share out (recompute_slice_activation).

    MindSpore's compiler shares out the input of each second LayerNorm. If several micro-batches are in one graph, it
    also shares out the input of each first LayerNorm that is the result of another block.
    """
    if not config.parallel.recompute_slice_activation:
        return 0
    layers = plan.layers_of_chunk(chunk)
    blocks = [layer for layer in layers[1:] if layer < plan.num_layers - 1]
    return len(layers) + (len(blocks) if config.micro_steps > 1 else 0)


class _Stage:
    """A rank of a pipeline stage, with all sizes in bytes."""

    def __init__(self, config: RunConfig, plan: Plan, at: Coordinates):
        self.config, self.plan = config, plan
        self.model, self.parallel = config.model, config.parallel
        self.chunks, self.layers = plan.chunks(at.pipeline), plan.layers(at.pipeline)
        self.is_last = at.pipeline == plan.last_stage
        self.several = config.micro_steps > 1
        self.of_chunks = in_flight(config, plan, at.pipeline)  # micro-batches in flight
        self.in_flight = max(self.of_chunks)
        self.item, self.softmax_item = ITEM_SIZE[self.model.compute_dtype], ITEM_SIZE[self.model.softmax_compute_dtype]
        self.hidden = hidden_bytes(config)
        self.own = self.hidden // token_parts(config)  # of the tokens that LayerNorms and dropouts see
        self.own_float32 = self.own * FLOAT32 // self.item
        self.heads = self.hidden // plan.tensor  # queries, keys, values or weighted sums of the heads of a rank
        self.pairs = pairs(config)
        self.dropout = bool(self.model.dropout_rate)
        # Two arrays of int32 at once make the mask of fused attention.
        drops = config.has_flash_attention and self.model.attention_dropout > 0
        self.mask_of_pairs = 2 * INT32 * self.pairs if drops else 0
        self.parameters: list[tuple[str, Box, Box]] = [
            (name, box(name, shape, plan, at), compiled_box(name, shape, plan, at))
            for name, shape in shapes_of_stage(config, plan, at.pipeline).items()
        ]

    def loss(self) -> Moment:
        """In the backward pass of the last chunk of the loss: everything is kept, and the chunk's logits are there."""
        if not self.is_last:
            return Moment("loss")
        chunks = self.config.loss_chunks
        numbers = token_count(self.config) // chunks * self.model.vocab_size // self.plan.vocab_parts
        gradients = (chunks - 1) * self.words * FLOAT32
        return Moment("loss", self.copies, gradients, self.kept + self.batch, _LOGITS * FLOAT32 * numbers)

    def first_backward(self) -> Moment:
        """In the backward pass of the last layer. All micro-batches in flight are kept."""
        return Moment("backward", self.copies, self.table_gradients, self.kept + self.working + self.batch)

    def last_backward(self) -> Moment:
        """At the end of the backward pass: one layer is kept, and a step of one micro-batch has all gradients."""
        kept = self.kept - self.kept_of(self.chunks[0]) + self.kept_by_layer(self.layers[0])
        copies = self.copies if self.several else 0
        return Moment("backward", copies, 0 if self.several else self.gradients, kept + self.working + self.batch)

    def update(self) -> Moment:
        """In the update. The compiler's order computes that of all parameters side by side."""
        arrays = sum(
            part.size * (_UPDATE if item_size(self.model, name) < FLOAT32 else 1) for name, _, part in self.parameters
        )
        return Moment("update", 0, FLOAT32 * arrays, self.inputs)

    @property
    def gradients(self) -> int:
        """Bytes of the gradients of a step of one micro-batch."""
        return sum(part.size * item_size(self.model, name) for name, _, part in self.parameters)

    def kept_by_layer(self, layer: int) -> int:
        """Bytes that a layer keeps of a micro-batch for its backward pass."""
        masks = 2 * self.own if self.dropout else 0
        if self.model.has_experts(layer):
            masks += (self.hidden - self.own) if self.dropout else 0
        units = feed_forward_bytes(self.config, layer)
        if self.parallel.recompute == "full":  # the inputs of both LayerNorms, as the sums return them
            return 2 * self.own
        if self.parallel.recompute == "selective":
            fused = self.heads + attention_bytes(self.config) if self.config.has_flash_attention else 0
            return 2 * self.own + masks + 3 * self.heads + fused + self.products_of_units(layer)
        return 2 * self.own_float32 + 2 * self.hidden + masks + 4 * self.heads + units + attention_bytes(self.config)

    @cached_property
    def kept(self) -> int:
        """Bytes that the stage keeps of all micro-batches in flight for their backward passes."""
        return sum(number * self.kept_of(chunk) for number, chunk in zip(self.of_chunks, self.chunks, strict=True))

    def kept_of(self, chunk: int) -> int:
        """Bytes that a chunk keeps of a micro-batch for its backward pass."""
        found = sum(map(self.kept_by_layer, self.plan.layers_of_chunk(chunk)))
        found -= sliced_sums(self.config, self.plan, chunk) * (self.own - self.own // self.plan.tensor)
        if self.parallel.recompute != "none" or self.config.has_flash_attention:
            found += mask_bytes(self.config)
        if chunk == 0 and self.dropout:  # mask of the embedding
            found += token_count(self.config) * self.model.hidden_size * FLOAT32
        if chunk == self.plan.num_chunks - 1:  # inputs of the final LayerNorm, of the queries, and of the head
            found += self.own_float32 + self.hidden + self.own
        return found

    def products_of_units(self, layer: int) -> int:
        """Bytes of the feed-forward units that selective recompute keeps: those before the activation."""
        units = feed_forward_bytes(self.config, layer)
        return units if self.model.has_experts(layer) else units // 2

    @cached_property
    def working(self) -> int:
        """Bytes of what is computed again in a layer, and of gradients of activations, at most at once."""
        last, scores = self.layers[-1], 0 if self.config.has_flash_attention else self.pairs * self.softmax_item
        units = feed_forward_bytes(self.config, last)
        if self.parallel.recompute == "none":
            freed = attention_bytes(self.config) - scores  # weights in the compute dtype, by then
            return max(2 * scores - min(freed, self.pairs * self.item), units, self.mask_of_pairs)
        attention = 3 * scores + 4 * self.heads + self.hidden
        if self.parallel.recompute == "selective":  # the layer's units are freed before its attention
            return max(attention - self.products_of_units(last), units + 2 * self.own_float32, self.mask_of_pairs)
        return self.own_float32 + max(attention + self.mask_of_pairs, 2 * units + self.hidden)

    @cached_property
    def copies(self) -> int:
        """Bytes of weights beside those that the rank holds: gathered, or cast to the compute dtype.

        What is gathered is cast before, and serves all micro-batches. Otherwise each of them makes its own casts.
        """
        model, found = self.model, 0
        for name, held, part in self.parameters:
            if part != held:
                is_freed = name.endswith("embedding_table") and not self.several  # only the head's copy is left
                found += 0 if is_freed else held.size * (FLOAT32 if is_float32(name) else self.item)
            elif not is_float32(name) and item_size(model, name) != self.item:
                found += self.in_flight * held.size * self.item
        if self.is_last:
            found += self.words * self.item if self.item < FLOAT32 else 0
            found += self.words * FLOAT32 if self.plan.last_stage else 0  # received from the first stage
        return found

    @property
    def words(self) -> int:
        """Number of elements of the word table on this rank."""
        return self.model.vocab_size // self.plan.vocab_parts * self.model.hidden_size

    @property
    def table_gradients(self) -> int:
        """Bytes of the word table's gradients from the chunks of the loss, which wait for that from the embedding."""
        return self.config.loss_chunks * self.words * FLOAT32 if self.is_last and not self.several else 0

    @property
    def inputs(self) -> int:
        """Bytes of ids, positions, masks and loss masks of all micro-batches."""
        of_micro_batch = token_count(self.config) * (2 * INT32 + FLOAT32) + attention_input_bytes(self.config)
        return self.config.micro_steps * of_micro_batch

    @property
    def batch(self) -> int:
        """Bytes of the inputs, and of masks that were gathered over the data-parallel ranks and wait for their turn."""
        waiting = self.config.micro_steps - self.in_flight if self.plan.data_ranks > 1 else 0
        return self.inputs + waiting * self.plan.data_ranks * attention_input_bytes(self.config)
