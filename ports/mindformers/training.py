"""Training by MindFormers' loop: the step, the optimizer of the original, and the trainer that knows the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.trainer import CausalLanguageModelingTrainer
from mindformers.wrapper import MFTrainOneStepCell
from mindspore import Parameter, Tensor, nn, ops
from mindspore.communication import GlobalComm, get_group_size, get_rank
from mindspore.nn.wrap.cell_wrapper import _get_parallel_mode

from ports.mindformers.data import PanguAlphaDataset, PanguAlphaPerplexity
from src.common.errors import InputError
from src.common.settings import TrainingConfig
from src.cpu_kernels.attach import adam_update
from src.nn.dropout import DropoutKeys
from src.nn.operators import for_each
from src.nn.optimizer import Optimizer, sum_of_squares
from src.parallel.semi_auto.train_step import ClonedOptimizer


class ShareOfRank(nn.Cell):
    """Weight of this rank's mean loss, so that the mean over the ranks is the mean over all tokens that count.

    Inputs:
        counted: float32 scalar, number of this rank's tokens that count.

    Returns:
        float32 scalar; the mean over the ranks is 1.
    """

    def __init__(self, ranks: int):
        super().__init__()
        self.ranks = ranks
        self.total = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)

    def construct(self, counted: Tensor) -> Tensor:
        return counted * self.ranks / ops.maximum(self.total(counted), Tensor(1.0, ms.float32))


class Objective(nn.Cell):
    """The function that the step differentiates.

    Inputs:
        scale: float32 scalar.
        inputs: Those of PanguAlphaHeadModel.

    Returns:
        The loss times the scale, and the loss.
    """

    def __init__(self, network: nn.Cell, pad_token: int, ranks: int):
        super().__init__(auto_prefix=False)
        self.network, self.pad_token = network, pad_token
        self.share = ShareOfRank(ranks) if ranks > 1 else None

    def construct(self, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.network(*inputs)
        if self.share is not None:
            counted = ops.cast(ops.not_equal(inputs[0][:, :-1], self.pad_token), ms.float32)
            if inputs[3] is not None:
                counted = counted * ops.cast(inputs[3], ms.float32)
            loss = loss * ops.stop_gradient(self.share(ops.reduce_sum(counted)))
        return loss * scale, loss


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class PanguAlphaTrainOneStepCell(MFTrainOneStepCell):
    """MindFormers' training step, without the overflow register of an NPU elsewhere, and with dropout that resumes.

    The masks of dropout depend on the seed and on the number of the step alone. On several ranks each token that
    counts weighs the same, and the loss is that of all ranks.

    Args:
        network: A PanguAlphaHeadModel.
        optimizer: The optimizer.
        seed: Seed of dropout.
        kwargs: See MFTrainOneStepCell.

    Inputs:
        inputs: The columns of the dataset: input_ids, or also position_ids and attention_mask, or also loss_mask.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, seed: int = 0, **kwargs: Any):
        super().__init__(network, optimizer, **kwargs)
        self.is_npu = ms.get_context("device_target") == "Ascend"
        if not self.is_npu:
            self.ascend_910a_target = self.ascend_910b_target = False
        is_parallel = _get_parallel_mode() == ms.ParallelMode.DATA_PARALLEL
        ranks, rank = (get_group_size(), get_rank()) if is_parallel else (1, 0)
        config = network.config.ours()
        self.ranks = ranks
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP) if ranks > 1 else None
        self.keys = DropoutKeys(seed, rank) if config.has_dropout else None
        objective = Objective(network, config.pad_token, ranks)
        self.value_and_gradients = ms.value_and_grad(objective, None, self.weights, has_aux=True)

    def grads_for_legacy(self, scaling_sens: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Return the loss, the gradients times the loss scale, and 1."""
        ids = inputs[0]
        position_ids, attention_mask = (None, None) if len(inputs) < 3 else inputs[1:3]
        loss_mask = None if len(inputs) < 4 else inputs[3]
        key = None if self.keys is None else self.keys(ops.reshape(self.optimizer.global_step, ()), ids)
        scale = ops.reshape(ops.cast(scaling_sens, ms.float32), ())
        (_, loss), gradients = self.value_and_gradients(scale, ids, position_ids, attention_mask, loss_mask, key)
        if self.all_reduce is not None:
            loss = self.all_reduce(loss) / self.ranks
        return loss, gradients, self.grad_scale_factor

    def start_overflow_check(self, pre_cond: Tensor, compute_input: Tensor) -> tuple[Any, Tensor]:
        """Clear the overflow register of an NPU. Elsewhere there is none."""
        return super().start_overflow_check(pre_cond, compute_input) if self.is_npu else (pre_cond, compute_input)

    def get_overflow_status(self, status: Any, compute_output: tuple[Tensor, ...]) -> Tensor:
        """Return whether a gradient is not finite."""
        if self.is_npu:
            return super().get_overflow_status(status, compute_output)
        return ops.logical_not(ops.isfinite(ops.addn(for_each(sum_of_squares, compute_output))))


@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER)
class FP32StateAdamWeightDecay(nn.Optimizer):
    """The original's optimizer: Adam with float32 moments, decoupled weight decay and no bias correction.

    Args:
        params: Parameters, or groups of them with their own weight_decay.
        learning_rate: Number or schedule; the same for all groups.
        beta1, beta2, eps, weight_decay: See src.common.settings.TrainingConfig.

    Inputs:
        gradients: One tensor for each parameter, in the order of `parameters`.

    Raises:
        InputError: Groups have learning rates of their own.
    """

    def __init__(
        self,
        params: Sequence[Parameter] | Sequence[dict[str, Any]],
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(learning_rate, params, weight_decay)
        if self.is_group_lr:
            raise InputError("FP32StateAdamWeightDecay has one learning rate for all groups")
        settings = TrainingConfig(beta1=beta1, beta2=beta2, epsilon=eps, weight_decay=weight_decay)
        is_compiled = _get_parallel_mode() == ms.ParallelMode.SEMI_AUTO_PARALLEL
        self.adam = (ClonedOptimizer if is_compiled else Optimizer)(settings, list(self.parameters))
        if self.is_group:
            self.adam.decays = tuple(float(decay) for decay in self.group_weight_decay)
        if ms.get_context("device_target") == "CPU":
            self.adam.update = adam_update(settings, self.parameters) or self.adam.update
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)

    def construct(self, gradients: tuple[Tensor, ...]) -> Any:
        lr = ops.cast(self.get_lr(), ms.float32)
        done = self.adam(gradients, self.one, lr, self.zero, self.zero)
        return ops.depend(self.assignadd(self.global_step, self.global_step_increase_tensor), done)


class SimulatedStep(nn.Cell):
    """Loss, gradients and update, for `ports.mindformers.dry_run`.

    Inputs:
        scale, factor, lr, beta1_power, beta2_power: float32 scalars; see src.nn.optimizer.
        inputs: Those of PanguAlphaHeadModel.

    Returns:
        The loss.
    """

    def __init__(self, network: nn.Cell, optimizer: FP32StateAdamWeightDecay):
        super().__init__(auto_prefix=False)
        objective = Objective(network, network.config.pad_token_id, 1)
        self.value_and_gradients = ms.value_and_grad(objective, None, optimizer.parameters, has_aux=True)
        self.adam = optimizer.adam

    def construct(
        self, scale: Tensor, factor: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, *inputs: Tensor
    ) -> Tensor:
        (_, loss), gradients = self.value_and_gradients(scale, *inputs)
        return ops.depend(loss, self.adam(gradients, factor, lr, beta1_power, beta2_power))


@MindFormerRegister.register(MindFormerModuleType.TRAINER)
class PanguAlphaTrainer(CausalLanguageModelingTrainer):
    """MindFormers' trainer of language models, which tells PanguAlphaDataset the model's settings."""

    def __init__(self, model_name: str | None = None):
        super().__init__(model_name)
        self.built: dict[str, Any] = {}  # datasets, by the attribute that holds them
        self.instance: Any = None  # the network, if the user built it

    def training_process(self, network: nn.Cell | None = None, **kwargs: Any) -> None:
        """Train or fine-tune."""
        self.instance = network
        super().training_process(network=network, **kwargs)

    def evaluate_process(self, config: Any = None, network: nn.Cell | None = None, **kwargs: Any) -> None:
        """Evaluate by a metric of logits.

        Raises:
            InputError: The metric would know only the records of one of several ranks.
        """
        self.instance = network
        self._require_one_rank(config, PanguAlphaPerplexity.__name__)
        super().evaluate_process(config=config, network=network, **kwargs)

    def generate_evaluate(self, config: Any, **kwargs: Any) -> None:
        """Evaluate by a metric of answers; raises as `evaluate_process`."""
        self._require_one_rank(config)
        super().generate_evaluate(config, **kwargs)

    @staticmethod
    def _require_one_rank(config: Any, *of_all_ranks: str) -> None:
        metrics = config.metric if isinstance(config.metric, list) else [config.metric]
        others = [metric["type"] for metric in metrics if metric["type"] not in of_all_ranks]
        if others and _get_parallel_mode() == ms.ParallelMode.DATA_PARALLEL:
            raise InputError(f"{others[0]} counts the examples of one rank; evaluate on one device")

    def create_dataset(self, is_train: bool = True, default_args: dict[str, Any] | None = None) -> Any:
        """Build the dataset of training or evaluation. One that was built before cannot be read a second time."""
        name = "train_dataset" if is_train else "eval_dataset"
        if getattr(self, name) is not None and getattr(self, name) is self.built.get(name):
            setattr(self, name, None)
        task = self.config.train_dataset_task if is_train else self.config.eval_dataset_task
        if task and task.type == PanguAlphaDataset.__name__:
            settings = self.config.model.model_config if self.instance is None else self.instance.config.to_dict()
            told = {"model_config": settings, "is_training": is_train}
            default_args = {**(default_args or {}), **told}
        self.built[name] = super().create_dataset(is_train, default_args)
        return self.built[name]

    def create_model_wrapper(self, network: nn.Cell, optimizer: nn.Optimizer) -> nn.Cell:
        """Build the training step, with the run's seed for dropout.

        Raises:
            InputError: A step should be of several batches.
        """
        runner, wrapper = self.config.runner_config, self.config.runner_wrapper
        several = {
            "runner_config.gradient_accumulation_steps": runner.gradient_accumulation_steps,
            "micro_batch_interleave_num": self.config.micro_batch_interleave_num,
        }
        for name, number in several.items():
            if (number or 1) > 1:
                raise InputError(
                    f"{name} is {number}: a step of the plug-in is one batch; take a larger batch_size, or "
                    "train.py --training.accumulation_steps"
                )
        if wrapper.type == PanguAlphaTrainOneStepCell.__name__:
            wrapper.setdefault("seed", self.config.seed or 0)
        return super().create_model_wrapper(network, optimizer)

    def warp_data_order_with_tool_cells(self, network: nn.Cell, construct_args_key: list[str] | None) -> nn.Cell:
        """Return the network as it is: the dataset gives its inputs in order.

        MindFormers' own would pass only the columns that the YAML file names, which are those of the records.
        """
        return network

    def predict_process(self, config: Any = None, network: nn.Cell | None = None, **kwargs: Any) -> Any:
        """Continue texts, with the network that this trainer has trained, if no checkpoint is named.

        MindFormers' own would build a network with random weights.

        Raises:
            InputError: There are no weights.
        """
        if network is None and not config.checkpoint.load_path:
            network = self.network
            if network is None and not config.model.model_config.checkpoint_name_or_path:
                raise InputError("there are no weights to predict with: name a predict_checkpoint")
        return super().predict_process(config=config, network=network, **kwargs)
