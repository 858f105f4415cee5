"""Seconds of an optimizer step under a plan, from the numbers of a machine's data sheet.

A rank computes matrix products, moves the arrays of all other operators through its memory, and sends messages. The
model adds these up as if none hid behind another one, and a stage of a pipeline waits for the others as in 1F1B. It
counts what the compiled graph of a device does (docs/plan_search.md has the formulas); the explicit backend sends more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from src.pangu_alpha_config import RunConfig
from src.parallel.plan.costs import RankMemory, rank_memory
from src.parallel.plan.plan import Plan
from src.parallel.plan.search.machines import Machine, Shares
from src.parallel.plan.sizes import FLOAT32, ITEM_SIZE


@dataclass(frozen=True)
class Schedule:
    """How a run works. Published runs have what no setting of this project says.

    Args:
        virtual_stages: Number of chunks of layers that a stage computes in turns (interleaved 1F1B).
        hidden_messages: Share of the tensor-parallel messages that hides behind products (MC2 of Ascend).
        sends_again: Full recompute repeats the messages of the forward pass. MindSpore's compiler leaves them out.
    """

    virtual_stages: int = 1
    hidden_messages: float = 0.0
    sends_again: bool = False


@dataclass(frozen=True)
class StageCost:
    """Seconds of a step on a rank of a stage at the numbers of the data sheet, the waiting in the pipeline included.

    Args:
        products: Matrix products.
        traffic: Memory traffic of all other operators, the optimizer's included.
        messages: Messages of tensor, pipeline and data parallel.
    """

    products: float
    traffic: float
    messages: float

    def seconds(self, shares: Shares) -> float:
        """Return the seconds of the step if the machine reaches these shares of its data sheet."""
        return self.products / shares.products + self.traffic / shares.traffic + self.messages / shares.links


@dataclass(frozen=True)
class _Stage:
    """A stage, and the sizes that the formulas are made of. Items are bytes of the compute dtype."""

    config: RunConfig
    plan: Plan
    stage: int

    @property
    def tokens(self) -> int:
        """Number of tokens of a micro-batch."""
        return self.config.training.batch_size * self.config.model.seq_length

    @property
    def hidden(self) -> int:
        """Bytes of a micro-batch's hidden states."""
        return self.tokens * self.config.model.hidden_size * ITEM_SIZE[self.config.model.compute_dtype]

    @property
    def layers(self) -> int:
        return len(self.plan.layers(self.stage))

    @property
    def has_head(self) -> bool:
        return self.stage == self.plan.pipeline - 1

    def recomputes(self, *kinds: str) -> bool:
        return self.config.parallel.recompute in kinds


def step_seconds(stages: Sequence[StageCost], shares: Shares) -> float:
    """Return the seconds of a step, which are those of the slowest stage."""
    return max(stage.seconds(shares) for stage in stages)


def stage_memories(config: RunConfig) -> list[RankMemory]:
    """Return the memory of a rank of the first and of the last stage. Those between them need no more."""
    plan = Plan.of(config.parallel, config.model)
    width = plan.world_size // plan.pipeline
    return [rank_memory(config, stage * width) for stage in sorted({0, plan.pipeline - 1})]


def stage_costs(
    config: RunConfig, machine: Machine, schedule: Schedule | None = None, memories: Sequence[RankMemory] | None = None
) -> list[StageCost]:
    """Return the costs of the first and of the last stage. Those between them need no more time than the first one.

    Args:
        config: Model and plan.
        machine: Its devices.
        schedule: What the settings do not say; None for a run of this project.
        memories: `stage_memories` of these settings, or of others with the same weights; None means that they are
            computed.
    """
    plan = Plan.of(config.parallel, config.model)
    schedule, memories = schedule or Schedule(plan.virtual_stages), memories or stage_memories(config)
    # A stage computes its micro-batches, and waits as long as the other stages take for one part of their layers.
    turns = config.micro_steps + (plan.pipeline - 1) / schedule.virtual_stages
    found = []
    for number, memory in zip(sorted({0, plan.pipeline - 1}), memories, strict=True):
        stage, updated = _Stage(config, plan, number), 2 * memory.held  # the update reads and writes what is held
        messages = turns * _micro_batch_messages(stage, machine, schedule) + _gradient_messages(stage, memory, machine)
        traffic = (turns * _moved(stage) + updated) / machine.bandwidth
        found.append(StageCost(turns * _flops(stage) / machine.peak, traffic, messages))
    return found


def _flops(stage: _Stage) -> float:
    """Return the FLOPs of a micro-batch on a rank: the forward pass, and twice as much in the backward pass.

    Flash attention leaves out the half of the scores that the causal mask hides, but computes them again in the
    backward pass, which is 2.5 times the forward pass (arXiv 2307.08691).
    """
    model, tokens = stage.config.model, stage.tokens
    matrices = 2 * tokens * (4 * model.hidden_size**2 + 2 * model.hidden_size * model.ffn_hidden_size)
    scores = 4 * tokens * model.seq_length * model.hidden_size
    attention = 3 * scores
    if stage.config.has_flash_attention:
        scores /= 2
        attention = 3.5 * scores
    elif stage.recomputes("selective"):
        attention += scores
    again = stage.recomputes("full") * (matrices + scores)
    head = stage.has_head * 2 * tokens * model.hidden_size * model.vocab_size / stage.plan.vocab_parts
    return stage.layers * (3 * matrices + attention + again) / stage.plan.tensor + 3 * head


def _moved(stage: _Stage) -> float:
    """Return the bytes that a rank's operators other than products read and write for a micro-batch.

    Each operator reads its operands and writes its result. The backward pass moves twice what the forward pass does.
    """
    model, parallel, plan = stage.config.model, stage.config.parallel, stage.plan
    item, dropout = ITEM_SIZE[model.compute_dtype], bool(model.dropout_rate)
    own_tokens = stage.hidden / (plan.tensor if parallel.sequence_parallel else 1)
    norms, sums = 4 * own_tokens, (6 + 4 * dropout) * own_tokens  # two of each in a layer
    heads = 8 * stage.hidden / plan.tensor  # queries, keys, values and their weighted sum change their layout
    activation = 2 * stage.tokens * model.ffn_hidden_size * item / plan.tensor
    forward = norms + sums + heads + activation
    moved = 3 * forward + stage.recomputes("selective") * (norms + activation) + stage.recomputes("full") * forward
    if not stage.config.has_flash_attention:
        weights = stage.tokens * model.seq_length * model.num_heads / plan.tensor  # number of attention weights
        softmax = ITEM_SIZE[model.softmax_compute_dtype]
        forward = weights * (2 * item + 2 * softmax + dropout * (2 * item + 1))  # mask, softmax, dropout and its mask
        backward = weights * (4 * softmax + dropout * 2 * item)
        moved += forward * (1 + stage.recomputes("selective", "full")) + backward
    # Softmax, loss and their gradient pass six times over the float32 logits.
    logits = stage.has_head * 6 * FLOAT32 * stage.tokens * model.vocab_size / plan.vocab_parts
    return stage.layers * moved + logits


def _micro_batch_messages(stage: _Stage, machine: Machine, schedule: Schedule) -> float:
    """Return the seconds that a rank sends for a micro-batch: sums of hidden states, and those for the next stage."""
    plan, parallel = stage.plan, stage.config.parallel
    seconds = 0.0
    if plan.tensor > 1:
        sums = stage.layers * (4 + 2 * (schedule.sends_again and stage.recomputes("full")))
        if parallel.vocab_parallel:
            sums += 2 * (stage.stage == 0) + stage.has_head  # of embeddings and their gradient; of the head's input
        sent = sums * _ring(plan.tensor) * stage.hidden * (1 - schedule.hidden_messages)
        seconds += sent / _link(machine, plan.tensor)
    if plan.pipeline > 1:
        # Hidden states go up and their gradients down; each tensor-parallel rank sends its share.
        sent = 2 * schedule.virtual_stages * stage.hidden / plan.tensor
        seconds += sent / _link(machine, plan.world_size)
    return seconds


def _gradient_messages(stage: _Stage, memory: RankMemory, machine: Machine) -> float:
    """Return the seconds that a rank sends gradients, once a step.

    Gradients have the dtype of the weights. With optimizer_shard, updated weights are gathered in the compute dtype.
    """
    model, plan = stage.config.model, stage.plan
    gradient = gathered = ITEM_SIZE[model.param_init_dtype]
    if plan.optimizer_shard:
        gathered = ITEM_SIZE[model.compute_dtype]
    seconds = 0.0
    if plan.data_ranks > 1:
        sent = memory.parameters * (gradient + gathered) * _ring(plan.data_ranks) / 2
        seconds += sent / _link(machine, plan.tensor * plan.data_ranks)
    if plan.pipeline > 1:  # the first and the last stage share the word table
        sent = FLOAT32 * model.vocab_size * model.hidden_size / plan.vocab_parts
        seconds += sent / _link(machine, plan.world_size)
    return seconds


def _ring(ranks: int) -> float:
    """Return how many times a rank of a ring sends an AllReduce's array."""
    return 2 * (ranks - 1) / ranks


def _link(machine: Machine, neighbours: int) -> float:
    """Return the bytes/s between ranks that lie among this number of neighbouring ranks."""
    return machine.inside if neighbours <= machine.joined else machine.outside
