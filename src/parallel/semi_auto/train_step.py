"""Training in semi-automatic parallel: all micro-batches of an optimizer step, and the update, in one graph."""

from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from src.nn.optimizer import Optimizer, StepScalars, keep_on_host, sum_of_squares
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import RunConfig
from src.pangu_alpha_wrapcell import ApplyGradients, Inputs, StepResult
from src.parallel.plan import sharding
from src.parallel.plan.plan import Plan
from src.parallel.recompute import recompute_layers
from src.parallel.semi_auto.strategies import annotate, forget_strategies

SUMS = "accu_grads."  # and a parameter's name: so MindSpore looks for the sum of its gradients
SCALARS = ("loss_scale", "lr", "beta1_power", "beta2_power")


def enter(config: RunConfig, rank: int, axes: Sequence[int], strategy_file: Path | None = None) -> None:
    """Switch MindSpore to semi-automatic parallel, before the model is built.

    Args:
        config: Of the run.
        rank: This process.
        axes: How many axes each input of the graph has; the first one is cut over the ranks with data of their own.
        strategy_file: Where the compiler writes how it has sliced the parameters.
    """
    plan = Plan.of(config.parallel, config.model)
    ms.reset_auto_parallel_context()
    settings: dict[str, object] = {}
    if plan.optimizer_shard:
        # Without the last one, what is whole on tensor-parallel ranks would be shared out over these, too.
        settings |= {
            "enable_parallel_optimizer": True,
            "parallel_optimizer_config": {
                "parallel_optimizer_threshold": 0,
                "optimizer_weight_shard_size": plan.data_ranks,
            },
        }
    if strategy_file is not None:
        settings["strategy_ckpt_config"] = {"save_file": str(strategy_file), "only_trainable_params": False}
    mode = ms.ParallelMode.SEMI_AUTO_PARALLEL
    if config.parallel.strategy_search:
        mode, settings["search_mode"] = ms.ParallelMode.AUTO_PARALLEL, "recursive_programming"
    ms.set_auto_parallel_context(
        parallel_mode=mode,
        device_num=plan.world_size,
        global_rank=rank,
        pipeline_stages=plan.pipeline,
        gradients_mean=False,
        enable_alltoall=True,
        dataset_strategy=tuple((plan.data_ranks, *[1] * (number - 1)) for number in axes),
        **settings,
    )


class ClonedOptimizer(Optimizer):
    """An optimizer whose moments the compiler slices as it slices their parameters. Without data until it has."""

    def _moments(self, prefix: str, names: list[str]) -> ParameterTuple:
        return ParameterTuple(
            [clone(parameter, f"{prefix}.{name}") for parameter, name in zip(self.parameters, names, strict=True)]
        )


def clone(parameter: Parameter, name: str) -> Parameter:
    """A float32 parameter of zeros, sliced as another one."""
    new = Parameter(initializer("zeros", parameter.shape, ms.float32), name=name, requires_grad=False)
    info = parameter.param_info
    new.param_info = info.clone()
    new.param_info.obj = new
    info.cloned_obj = [*getattr(info, "cloned_obj", []), new]
    new.name, new.requires_grad = name, False
    return new


class NormOfSlices(nn.Cell):
    """The global norm of gradients, each a rank's slice: of the sum of squares each rank adds its share.

    Args:
        copies: Ranks with the same slice, for each gradient.
        is_alone: There are no other ranks.
    """

    def __init__(self, copies: Sequence[int], is_alone: bool):
        super().__init__()
        self.shares = tuple(1.0 / number for number in copies)
        self.sum = nn.Identity() if is_alone else ops.AllReduce()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        squares = ()
        for i in range(len(tensors)):
            squares += (sum_of_squares(tensors[i]) * self.shares[i],)
        return ops.sqrt(self.sum(ops.addn(squares)))


class SemiAutoTrainStep(nn.Cell):
    """One optimizer step. What the host decides comes in as parameters: inputs would be cut like the batch.

    Args:
        loss: Of a batch, for validation.
        network: The loss of all micro-batches, summed.
        parameters: Of the whole model: the compiler wants gradients of all stages' parameters, before it takes away
            what is not of this one.
        own: Which of them this rank's stage holds.
        apply_gradients: What their gradients go to.
        accumulates: The network has several micro-batches, whose gradients the compiler adds up in `accu_grads`.
        optimizer_shard: Gradients come out as the slices that this rank updates.

    Inputs:
        batch: What PanguAlphaWithLoss takes, of all micro-batches.

    Returns:
        As `src.pangu_alpha_wrapcell.TrainStep`; the loss is a sum over micro-batches.
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
        self.gradients = ops.GradOperation(get_by_list=True, sens_param=True)
        self.loss_scale, self.lr, self.beta1_power, self.beta2_power = (
            Parameter(Tensor(0.0, ms.float32), name=f"scalar.{name}", requires_grad=False) for name in SCALARS
        )
        self.assign = ops.Assign()

    @property
    def held_parameters(self) -> list[Parameter]:
        """Of this rank's stage."""
        return [self.weights[i] for i in self.own]

    @property
    def held_sums(self) -> list[Parameter]:
        """Sums of their gradients, where there are any."""
        return [self.accu_grads[i] for i in self.own] if self.accumulates else []

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.network(*batch)
        sens = ops.ones_like(loss) * self.loss_scale
        of_all = self.gradients(self.network, self.weights)(*batch, sens)
        gradients = ()
        for i in self.own:
            gradients += (of_all[i],)
        if not self.accumulates:
            return (loss,) + self.apply_gradients(
                gradients, self.loss_scale, self.lr, self.beta1_power, self.beta2_power
            )
        sums, added = (), ops.depend(of_all, self.accu_grads)  # so that those of other stages are there, too
        for i in self.own:
            sums += (ops.depend(self.accu_grads[i], added),)
        result = self.apply_gradients(
            gradients if self.optimizer_shard else sums, self.loss_scale, self.lr, self.beta1_power, self.beta2_power
        )
        cleared = ()
        for place, i in enumerate(self.own):
            cleared += (self.assign(self.accu_grads[i], ops.zeros_like(ops.depend(sums[place], result))),)
        return (ops.depend(loss, cleared),) + result


class Objective(nn.Cell):
    """What is differentiated, of one micro-batch: the loss, with that of unbalanced experts."""

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
    """The graph of a rank's optimizer step of a whole model that was built without data; and the optimizer in it."""
    plan = Plan.of(config.parallel, config.model)
    network = PanguAlphaWithLoss(config.model, model)
    annotate(network, plan, config.parallel.sequence_parallel)
    if config.parallel.recompute:
        recompute_layers(model, norms=True, slice_activation=config.parallel.recompute_slice_activation)
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
        objective.cell_init_args = "lazy_inline"  # one graph of a micro-batch, called for each
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
    step.set_train()
    return step, optimizer


def _copies(config: RunConfig, plan: Plan, name: str) -> int:
    """Ranks of the run that have the same slice of a parameter's gradient; that of the word table is the first stage's
    alone, where the last one sends its share."""
    whole = sharding.parameter_shapes(config.model)[name]
    part = sharding.optimizer_box(name, whole, plan, plan.coordinates(0))
    return plan.world_size // plan.pipeline * part.size // prod(whole)


class SemiAutoStepper:
    """As `src.pangu_alpha_wrapcell.Stepper`, of a graph that holds all micro-batches of a step.

    Args:
        step: The graph.
        plan: Of the run.
        rank: This process.
        micro_batches: Of a step.
    """

    def __init__(self, step: SemiAutoTrainStep, plan: Plan, rank: int, micro_batches: int):
        self._step, self._micro_batches = step, micro_batches
        self._loss = step.loss
        # The graph's loss is that of the whole batch, on all ranks of the last stage.
        self._share = (plan.coordinates(rank).pipeline == plan.pipeline - 1) / plan.data_ranks

    def train(self, loss_scale: float, scalars: StepScalars, micro_batches: Iterable[Inputs]) -> StepResult:
        """One optimizer step over micro-batches, each what PanguAlphaWithLoss takes."""
        values = (loss_scale, scalars.learning_rate, scalars.beta1_power, scalars.beta2_power)
        for name, value in zip(SCALARS, values, strict=True):
            getattr(self._step, name).set_data(Tensor(np.float32(value)))
        loss, norm, finite = self._step(*_joined(micro_batches))
        loss = float(loss.asnumpy()) / self._micro_batches * self._share
        return StepResult(loss, float(norm.asnumpy()), bool(finite.asnumpy()))

    def evaluate(self, batch: Inputs) -> float:
        """This rank's share of the loss of a batch, of a model that is not in stages."""
        return float(self._loss(*_joined([batch])).asnumpy()) * self._share


def _joined(micro_batches: Iterable[Inputs]) -> list[Tensor]:
    """The inputs of the graph: a mask of the loss is always there, dropout keys where there is dropout."""
    batches = []
    for ids, position_ids, attention_mask, loss_mask, dropout_key in micro_batches:
        counted = np.ones(position_ids.shape, np.float32) if loss_mask is None else loss_mask.asnumpy()
        arrays = [ids.asnumpy(), position_ids.asnumpy(), attention_mask.asnumpy(), counted.astype(np.float32)]
        batches.append(arrays if dropout_key is None else [*arrays, dropout_key.asnumpy()])
    return [Tensor(np.concatenate(parts)) for parts in zip(*batches, strict=True)]


def no_batch(config: RunConfig) -> list[Tensor]:
    """A rank's inputs of the graph, to compile it."""
    rows, length = config.training.batch_size * config.micro_steps, config.model.seq_length
    shapes = [
        ((rows, length + 1), np.int32),
        ((rows, length), np.int32),
        ((rows, length, length), np.bool_),
        ((rows, length), np.float32),
    ]
    if config.model.dropout_rate:
        shapes.append(((rows,), np.int32))
    return [Tensor(np.zeros(shape, dtype)) for shape, dtype in shapes]


def compile_step(
    config: RunConfig, rank: int, strategy_file: Path | None = None
) -> tuple[SemiAutoTrainStep, Optimizer]:
    """A rank's compiled step, whose parameters have no data yet and whose `parameter_layout_dict` is how the compiler
    has sliced them; and the optimizer in it. Arguments: see `enter`."""
    batch = no_batch(config)
    enter(config, rank, [tensor.ndim for tensor in batch], strategy_file)
    plan = Plan.of(config.parallel, config.model)
    with no_init_parameters():
        model = PanguAlphaModel(config.model)
    step, optimizer = build_train_step(config, model, rank)
    if config.parallel.strategy_search:
        forget_strategies(step)
    step.compile(*batch)
    if config.parallel.strategy_search:  # the slices are known now: compiled again, the norm counts each once
        norm = step.apply_gradients.global_norm
        norm.shares = tuple(
            _share(step.parameter_layout_dict[parameter.name], plan) for parameter in step.held_parameters
        )
        step.compile_cache.clear()
        step.compile(*batch)
    return step, optimizer


def _share(layout: Sequence, plan: Plan) -> float:
    """One over the ranks that hold the same slice, of a layout that the compiler inferred."""
    sliced, whole = layout[2], layout[6]
    return prod(whole) / prod(sliced) / plan.world_size
