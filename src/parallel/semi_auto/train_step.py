"""Training in semi-automatic parallel: one graph has all micro-batches of an optimizer step and the update."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from src.nn.operators import after, for_each, pick
from src.nn.optimizer import Optimizer, StepScalars, keep_on_host, sum_of_squares
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import RunConfig
from src.pangu_alpha_wrapcell import ApplyGradients, Inputs, StepResult, clear, counted_tokens
from src.parallel.attention import fuse_attention
from src.parallel.chunked_loss import chunk_loss
from src.parallel.float_status import FiniteByRegister
from src.parallel.plan import sharding
from src.parallel.plan.plan import Plan
from src.parallel.recompute import recompute_layers
from src.parallel.semi_auto.context import enter
from src.parallel.semi_auto.strategies import annotate, forget_strategies

SUMS = "accu_grads."  # MindSpore finds the sum of a parameter's gradients by this prefix and the parameter's name
SCALARS = ("loss_scale", "lr", "beta1_power", "beta2_power")


class ClonedOptimizer(Optimizer):
    """Optimizer with moments that the compiler slices like their parameters. They have no data before that."""

    def _moments(self, prefix: str, names: list[str]) -> ParameterTuple:
        return ParameterTuple(
            [clone(parameter, f"{prefix}.{name}") for parameter, name in zip(self.parameters, names, strict=True)]
        )


def clone(parameter: Parameter, name: str) -> Parameter:
    """Return a float32 parameter of zeros that the compiler slices like another parameter."""
    new = Parameter(initializer("zeros", parameter.shape, ms.float32), name=name, requires_grad=False)
    info = parameter.param_info
    new.param_info = info.clone()
    new.param_info.obj = new
    info.cloned_obj = [*getattr(info, "cloned_obj", []), new]
    new.name, new.requires_grad = name, False
    return new


class NormOfSlices(nn.Cell):
    """Global norm of gradients that are slices. Ranks with the same slice each add their share of its squares.

    Args:
        copies: For each gradient, the number of ranks that have the same slice.
        is_alone: There are no other ranks.
    """

    def __init__(self, copies: Sequence[int], is_alone: bool):
        super().__init__()
        self.shares = tuple(1.0 / number for number in copies)
        self.sum = nn.Identity() if is_alone else ops.AllReduce()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return ops.sqrt(self.sum(ops.addn(for_each(_share_of_squares, tensors, self.shares))))


def _share_of_squares(x: Tensor, share: float) -> Tensor:
    return sum_of_squares(x) * share


class SemiAutoTrainStep(nn.Cell):
    """One optimizer step. Scalars from the host come in as parameters, because inputs would be cut like the batch.

    Args:
        loss: Loss of one batch, for validation.
        network: Sum of the losses of all micro-batches.
        parameters: Parameters of the whole model. The compiler prunes the other stages later, so gradients of all
            stages are requested.
        own: Indices of the parameters that this rank's stage holds.
        apply_gradients: Applies the gradients.
        accumulates: There are several micro-batches, and the compiler adds their gradients up in `accu_grads`.
        optimizer_shard: Gradients are the slices that this rank updates.

    Inputs:
        batch: The inputs of PanguAlphaWithLoss, for all micro-batches.

    Returns:
        Same as `src.pangu_alpha_wrapcell.TrainStep`, with the loss summed over the micro-batches.
    """

    def __init__(
        self,
        loss: nn.Cell,
        network: nn.Cell,
        parameters: Sequence[Parameter],
        own: Sequence[int],
        apply_gradients: ApplyGradients,
        accumulates: bool,
        optimizer_shard: bool,
    ):
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss
        self.weights, self.own = ParameterTuple(parameters), tuple(own)
        self.apply_gradients = apply_gradients
        self.accumulates, self.optimizer_shard = accumulates, optimizer_shard
        if accumulates:
            self.accu_grads = ParameterTuple([clone(weight, SUMS + weight.name) for weight in parameters])
            self.own_sums = ParameterTuple([self.accu_grads[i] for i in own])
        self.gradients = ops.GradOperation(get_by_list=True, sens_param=True)
        self.loss_scale, self.lr, self.beta1_power, self.beta2_power = (
            Parameter(Tensor(0.0, ms.float32), name=f"scalar.{name}", requires_grad=False) for name in SCALARS
        )

    @property
    def held_parameters(self) -> list[Parameter]:
        """Parameters of this rank's stage."""
        return [self.weights[i] for i in self.own]

    @property
    def held_sums(self) -> list[Parameter]:
        """Sums of the gradients of `held_parameters`; empty with a single micro-batch."""
        return list(self.own_sums) if self.accumulates else []

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.network(*batch)
        sens = ops.ones_like(loss) * self.loss_scale
        of_all = self.gradients(self.network, self.weights)(*batch, sens)
        gradients = pick(of_all, self.own)
        if not self.accumulates:
            return (loss,) + self.apply_gradients(
                gradients, self.loss_scale, self.lr, self.beta1_power, self.beta2_power
            )
        added = ops.depend(of_all, self.accu_grads)  # keeps the sums of other stages in the graph
        sums = for_each(ops.partial(after, added), self.own_sums)
        norm, finite = self.apply_gradients(
            gradients if self.optimizer_shard else sums, self.loss_scale, self.lr, self.beta1_power, self.beta2_power
        )
        return ops.depend(loss, clear(self.own_sums, ops.depend(finite, added))), norm, finite


class FixedCount(nn.Cell):
    """Replaces the count of a loss by a constant.

    The loss is then a sum, from the first forward pass on, and the sums of all micro-batches and of their interleaved
    parts add up. The host puts the division by the tokens that count in the whole step into the loss mask.

    Args:
        number: The constant. It keeps the loss at the size of a mean.
    """

    def __init__(self, number: int):
        super().__init__(auto_prefix=False)
        self.number = number
        self.constant = Tensor(number, ms.float32)

    def construct(self, counted: Tensor) -> Tensor:
        return self.constant


class Objective(nn.Cell):
    """Objective of one micro-batch: the loss and the load-balancing loss of experts."""

    def __init__(self, network: PanguAlphaWithLoss):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        loss_mask: Tensor | None = None,
        dropout_key: Tensor | None = None,
    ) -> Tensor:
        objective, _ = self.network.with_balance(ids, position_ids, attention_mask, loss_mask, dropout_key)
        return objective


def build_train_step(config: RunConfig, model: PanguAlphaModel, rank: int) -> tuple[SemiAutoTrainStep, Optimizer]:
    """Build the graph of a rank's optimizer step.

    Args:
        config: Settings of the run.
        model: A whole model that was built without data.
        rank: Rank of this process.

    Returns:
        The graph, and the optimizer in it.
    """
    plan = Plan.of(config.parallel, config.model)
    network = PanguAlphaWithLoss(config.model, model)
    annotate(network, plan, config.parallel.sequence_parallel)
    chunk_loss(network, config.loss_chunks, plan.data_ranks)
    network.count = FixedCount(config.training.batch_size * plan.data_ranks * config.model.seq_length)
    if config.has_flash_attention:
        fuse_attention(model, config.attention_input == "document ends", plan.data_ranks, plan.tensor)
    recompute_layers(model, config.parallel.recompute, True, config.parallel.recompute_slice_activation)
    parameters, several = model.trainable_params(), config.micro_steps > 1
    stage = plan.coordinates(rank).pipeline
    own = [i for i, parameter in enumerate(parameters) if stage in sharding.stages(parameter.name, plan)]
    held = [parameters[i] for i in own]
    for layer, block in enumerate(model.layers):
        block.set_comm_fusion(1 + layer * config.parallel.fusion_groups // config.model.num_layers)
    objective, interleaved = Objective(network), config.parallel.micro_batch_interleaved
    if interleaved > 1:
        objective = nn.MicroBatchInterleaved(objective, interleaved)
    if several:
        objective.cell_init_args = "lazy_inline"  # compile one graph of a micro-batch, and call it for each of them
        wrap = nn.PipelineCell if plan.pipeline > 1 else nn.GradAccumulationCell
        objective = wrap(objective, config.micro_steps)
    with no_init_parameters():
        optimizer = ClonedOptimizer(config.training, held)
        if config.parallel.optimizer_offload:
            keep_on_host(optimizer)
        apply_gradients = ApplyGradients(optimizer, config.training.clip_norm, config.micro_steps * interleaved)
        apply_gradients.global_norm = NormOfSlices(
            [_copies(config, plan, parameter.name) for parameter in held], plan.world_size == 1
        )
        step = SemiAutoTrainStep(network, objective, parameters, own, apply_gradients, several, plan.optimizer_shard)
    if config.parallel.has_float_status:
        apply_gradients.is_finite = FiniteByRegister(ops.AllReduce() if plan.world_size > 1 else nn.Identity())
    step.set_train()
    return step, optimizer


def _copies(config: RunConfig, plan: Plan, name: str) -> int:
    """Return how many ranks of the run have the same slice of a parameter's gradient.

    Only the first stage counts for the word table, because the last stage sends its share of the gradient there.
    """
    whole = sharding.parameter_shapes(config.model)[name]
    part = sharding.optimizer_box(name, whole, plan, plan.coordinates(0))
    return plan.world_size // plan.pipeline * part.size // prod(whole)


class SemiAutoStepper:
    """Same as `src.pangu_alpha_wrapcell.Stepper`, for a graph that has all micro-batches of a step.

    Args:
        step: The compiled graph.
        plan: How the run is spread.
        rank: Rank of this process.
        micro_batches: Number of micro-batches in a step, or of their interleaved parts.
        total: Returns the sum of an array over all ranks that have different data.
    """

    def __init__(
        self,
        step: SemiAutoTrainStep,
        plan: Plan,
        rank: int,
        micro_batches: int,
        total: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ):
        self._step, self._micro_batches = step, micro_batches
        self._loss, self._total = step.loss, total
        # All ranks of the last stage get the loss of the whole batch.
        self._share = (plan.coordinates(rank).pipeline == plan.last_stage) / plan.data_ranks

    def train(self, loss_scale: float, scalars: StepScalars, micro_batches: Iterable[Inputs]) -> StepResult:
        """Run one optimizer step over micro-batches. Each one holds the inputs of PanguAlphaWithLoss."""
        values = (loss_scale, scalars.learning_rate, scalars.beta1_power, scalars.beta2_power)
        for name, value in zip(SCALARS, values, strict=True):
            getattr(self._step, name).set_data(Tensor(np.float32(value)))
        self._step.apply_gradients.is_finite.begin()
        loss, norm, finite = self._step(*self._inputs(micro_batches, self._micro_batches))
        loss = float(loss.asnumpy()) / self._micro_batches * self._share
        return StepResult(loss, float(norm.asnumpy()), bool(finite.asnumpy()))

    def evaluate(self, batch: Inputs) -> float:
        """Return this rank's share of the loss of a batch, for a model without pipeline stages."""
        return float(self._loss(*self._inputs([batch], 1)).asnumpy()) * self._share

    def _inputs(self, micro_batches: Iterable[Inputs], parts: int) -> list[Tensor]:
        """Join micro-batches to the inputs of the graph, with a loss mask that divides by the tokens that count.

        Args:
            micro_batches: The inputs of PanguAlphaWithLoss.
            parts: Number of losses that the graph adds up. Their sum is then `parts` times the mean over all tokens.
        """
        ids, position_ids, attention_mask, loss_mask, *keys = _joined(micro_batches)
        tokens = self._total(np.array([counted_tokens(ids, loss_mask, self._loss.pad_token)]))
        weight = parts * self._loss.count.number / (float(tokens[0]) or 1.0)
        return [Tensor(x) for x in (ids, position_ids, attention_mask, loss_mask * np.float32(weight), *keys)]


def _joined(micro_batches: Iterable[Inputs]) -> list[np.ndarray]:
    """Join micro-batches along the rows. They always have a loss mask, and dropout keys with dropout."""
    batches = []
    for ids, position_ids, attention_mask, loss_mask, dropout_key in micro_batches:
        counted = np.ones(position_ids.shape, np.float32) if loss_mask is None else loss_mask.asnumpy()
        arrays = [ids.asnumpy(), position_ids.asnumpy(), attention_mask.asnumpy(), counted.astype(np.float32)]
        batches.append(arrays if dropout_key is None else [*arrays, dropout_key.asnumpy()])
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def no_batch(config: RunConfig) -> list[Tensor]:
    """Return inputs of zeros with the shapes of a rank's batch, to compile the graph."""
    rows, length = config.training.batch_size * config.micro_steps, config.model.seq_length
    attention = {
        "mask": ((rows, length, length), np.bool_),
        "documents": ((rows, length), np.int32),
        "document ends": ((rows, config.parallel.most_documents), np.int64),
    }
    shapes = [
        ((rows, length + 1), np.int32),
        ((rows, length), np.int32),
        attention[config.attention_input],
        ((rows, length), np.float32),
    ]
    if config.model.has_dropout:
        shapes.append(((rows,), np.int32))
    return [Tensor(np.zeros(shape, dtype)) for shape, dtype in shapes]


def compile_step(
    config: RunConfig, rank: int, strategy_file: Path | None = None
) -> tuple[SemiAutoTrainStep, Optimizer]:
    """Compile a rank's optimizer step. The arguments are those of `enter`.

    Returns:
        The compiled graph and the optimizer in it. The parameters have no data yet, and `parameter_layout_dict` of the
        graph says how the compiler has sliced them.
    """
    batch = no_batch(config)
    enter(config, rank, [tensor.ndim for tensor in batch], strategy_file)
    plan = Plan.of(config.parallel, config.model)
    with no_init_parameters():
        model = PanguAlphaModel(config.model)
    step, optimizer = build_train_step(config, model, rank)
    if config.parallel.strategy_search:
        forget_strategies(step)
    step.compile(*batch)
    if (
        config.parallel.strategy_search
    ):  # the slices are known only now; compile again with a norm that counts each once
        norm = step.apply_gradients.global_norm
        norm.shares = tuple(
            _share(step.parameter_layout_dict[parameter.name], plan) for parameter in step.held_parameters
        )
        step.compile_cache.clear()
        step.compile(*batch)
    return step, optimizer


def _share(layout: Sequence, plan: Plan) -> float:
    """Return 1 / (number of ranks that hold the same slice), from a layout of the compiler."""
    sliced, whole = layout[2], layout[6]
    return prod(whole) / prod(sliced) / plan.world_size
