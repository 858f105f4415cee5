"""The training step around the loss: accumulate, check, clip and apply gradients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.nn.operators import after, for_each
from src.nn.optimizer import StepScalars, sum_of_squares
from src.pangu_alpha import PanguAlphaWithLoss


class Objective(nn.Cell):
    """The function that training differentiates.

    Inputs:
        scale: float32 scalar.
        batch: The inputs of PanguAlphaWithLoss.

    Returns:
        The objective, which is the loss plus the load-balancing loss, times the scale; and the plain loss.
    """

    def __init__(self, network: PanguAlphaWithLoss):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, scale: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        objective, loss = self.network.with_balance(*batch)
        return objective * scale, loss


def zero_sums(parameters: Sequence[Parameter]) -> ParameterTuple:
    """Create float32 parameters, filled with 0, that sum up the gradients of `parameters`."""
    return ParameterTuple(
        [
            Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"accumulated.{p.name}", requires_grad=False)
            for p in parameters
        ]
    )


def add_to(sums: ParameterTuple, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add gradients to their sums. Returns a value for `ops.depend`."""
    return for_each(_add_to, sums, gradients)


def _add_to(total: Parameter, gradient: Tensor) -> Tensor:
    return ops.assign_add(total, ops.cast(gradient, ms.float32))


def clear(sums: ParameterTuple, done: Tensor) -> tuple[Tensor, ...]:
    """Set the sums to 0 after `done` was computed. Returns a value for `ops.depend`."""
    return for_each(ops.partial(_clear, done), sums)


def _clear(done: Tensor, total: Parameter) -> Tensor:
    return ops.assign(total, ops.zeros_like(after(done, total)))


class Accumulator(nn.Cell):
    """Computes the loss and the gradients of a micro-batch, and adds the gradients to `sums`.

    Inputs:
        scale: float32 scalar that multiplies the loss before the backward pass: the loss scale, times the weight of the
            micro-batch (see `token_weights`).
        batch: The inputs of PanguAlphaWithLoss.

    Returns:
        The unscaled loss, a float32 scalar.
    """

    def __init__(self, network: PanguAlphaWithLoss, parameters: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.sums = zero_sums(parameters)
        self.value_and_gradients = ms.value_and_grad(Objective(network), None, ParameterTuple(parameters), has_aux=True)

    def construct(self, scale: Tensor, *batch: Tensor) -> Tensor:
        (_, loss), gradients = self.value_and_gradients(scale, *batch)
        return ops.depend(loss, add_to(self.sums, gradients))


class GlobalNorm(nn.Cell):
    """Square root of the sum of all squares of several tensors, a float32 scalar."""

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return ops.sqrt(ops.addn(for_each(sum_of_squares, tensors)))


class IsFinite(nn.Cell):
    """Whether the norm of a step's gradients is finite. A chip may have more to tell: see src/parallel/float_status.py.

    Inputs:
        norm: float32 scalar.
    """

    def begin(self) -> None:
        """Do what must come before the passes of a step. It is called on the host."""

    def construct(self, norm: Tensor) -> Tensor:
        return ops.isfinite(norm)


class ApplyGradients(nn.Cell):
    """Checks gradients for overflow, clips them by their global norm, and updates the parameters.

    If a gradient is not finite, nothing is updated. `reduce_gradients` does nothing here; a parallel plan replaces it.

    Args:
        optimizer: Updates the parameters from the results of `reduce_gradients`.
        clip_norm: Largest global norm. 0 means no clipping.
        micro_batches: Number of micro-batches that the gradients are sums of.

    Inputs:
        gradients: One tensor for each parameter, times the loss scale.
        loss_scale, lr, beta1_power, beta2_power: float32 scalars. The last three come from `StepScalars`.

    Returns:
        The unscaled global norm of the gradients before clipping, and whether nothing overflowed.
    """

    def __init__(self, optimizer: nn.Cell, clip_norm: float, micro_batches: int = 1):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.reduce_gradients = nn.Identity()
        self.global_norm = GlobalNorm()
        self.is_finite = IsFinite()
        self.micro_batches = micro_batches
        self.clip_norm = clip_norm

    def construct(
        self, gradients: tuple[Tensor, ...], loss_scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradients = self.reduce_gradients(gradients)
        unscale = 1.0 / (loss_scale * self.micro_batches)
        norm = self.global_norm(gradients) * unscale
        finite = self.is_finite(norm)
        factor = unscale
        if self.clip_norm > 0:
            factor = unscale * (self.clip_norm / ops.maximum(norm, Tensor(self.clip_norm, ms.float32)))
        if finite:
            finite = ops.depend(finite, self.optimizer(gradients, factor, lr, beta1_power, beta2_power))
        return norm, finite


class ApplySums(nn.Cell):
    """Applies the summed gradients, and sets the sums to 0.

    Inputs:
        loss_scale, lr, beta1_power, beta2_power: float32 scalars. The last three come from `StepScalars`.

    Returns:
        The results of ApplyGradients.
    """

    def __init__(self, apply_gradients: ApplyGradients, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.apply_gradients, self.sums = apply_gradients, sums

    def construct(
        self, loss_scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor
    ) -> tuple[Tensor, Tensor]:
        norm, finite = self.apply_gradients(self.sums, loss_scale, lr, beta1_power, beta2_power)
        return ops.depend(norm, clear(self.sums, finite)), finite


class TrainStep(nn.Cell):
    """Computes a step of one micro-batch and updates the parameters, in one graph.

    Inputs:
        loss_scale, lr, beta1_power, beta2_power: float32 scalars. The last three come from `StepScalars`.
        batch: The inputs of PanguAlphaWithLoss.

    Returns:
        The unscaled loss, and the results of ApplyGradients.
    """

    def __init__(self, network: PanguAlphaWithLoss, parameters: list[Parameter], apply_gradients: ApplyGradients):
        super().__init__(auto_prefix=False)
        self.value_and_gradients = ms.value_and_grad(Objective(network), None, ParameterTuple(parameters), has_aux=True)
        self.apply_gradients = apply_gradients

    def construct(
        self, loss_scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, *batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (_, loss), gradients = self.value_and_gradients(loss_scale, *batch)
        return (loss,) + self.apply_gradients(gradients, loss_scale, lr, beta1_power, beta2_power)


@dataclass
class StepResult:
    """Result of an optimizer step.

    Args:
        loss: This rank's share of the loss, which is the mean over all tokens of the step that count.
        gradient_norm: Global norm of the gradients before clipping.
        finite: Whether nothing overflowed. Else the weights were not updated.
    """

    loss: float
    gradient_norm: float
    finite: bool


# Inputs of PanguAlphaWithLoss: ids, position_ids, attention_mask, loss_mask, dropout_key. The last two may be None.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def counted_tokens(ids: np.ndarray, loss_mask: np.ndarray | None, pad_token: int) -> float:
    """Return how many labels count in the loss of PanguAlphaWithLoss; see there for ids and loss_mask."""
    counted = ids[:, :-1] != pad_token
    return float(counted.sum() if loss_mask is None else (counted * loss_mask).sum(dtype=np.float64))


def token_weights(
    micro_batches: Sequence[Inputs], pad_token: int, total: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """Return the weight of the mean loss of each micro-batch in the loss of the step. The mean of the weights is 1.

    A micro-batch weighs as much as it has tokens that count. So the weighted mean over the micro-batches is the mean
    over all tokens of the step, however they are cut into micro-batches.

    Args:
        micro_batches: This rank's micro-batches.
        pad_token: Labels after it do not count.
        total: Returns the sum of an array over all ranks that have different data.
    """
    if len(micro_batches) == 1:
        return [1.0]
    counts = [
        counted_tokens(ids.asnumpy(), None if loss_mask is None else loss_mask.asnumpy(), pad_token)
        for ids, _, _, loss_mask, *_ in micro_batches
    ]
    totals = total(np.array(counts)).astype(np.float64)
    return (totals / (totals.mean() or 1.0)).tolist()


class Stepper:
    """Runs the optimizer steps of a model without pipeline stages. Its parameters may be sliced.

    Args:
        network: The loss of the model.
        parameters: Parameters to update.
        apply_gradients: Applies the summed gradients.
        total: Returns the sum of an array over all ranks that have different data.
    """

    def __init__(
        self,
        network: PanguAlphaWithLoss,
        parameters: list[Parameter],
        apply_gradients: ApplyGradients,
        total: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ):
        self.network, self.is_finite, self._total = network, apply_gradients.is_finite, total
        self.accumulator, self.update = None, TrainStep(network, parameters, apply_gradients)
        if apply_gradients.micro_batches > 1:
            self.accumulator = Accumulator(network, parameters)
            self.update = ApplySums(apply_gradients, self.accumulator.sums)

    def train(self, loss_scale: float, scalars: StepScalars, micro_batches: Iterable[Inputs]) -> StepResult:
        """Run one optimizer step over micro-batches. Each one has the inputs of PanguAlphaWithLoss."""
        batches = list(micro_batches)
        weights = token_weights(batches, self.network.pad_token, self._total)
        scale_and_scalars = Tensor(np.float32(loss_scale)), *scalars.tensors()
        self.is_finite.begin()
        if self.accumulator:
            losses = [
                self.accumulator(Tensor(np.float32(loss_scale * weight)), *batch)
                for weight, batch in zip(weights, batches, strict=True)
            ]
            norm, finite = self.update(*scale_and_scalars)
        else:
            [batch] = batches
            loss, norm, finite = self.update(*scale_and_scalars, *batch)
            losses = [loss]
        return StepResult(weighted_mean(losses, weights), float(norm.asnumpy()), bool(finite.asnumpy()))

    def evaluate(self, batch: Inputs) -> float:
        """Return this rank's share of the loss of a batch."""
        return float(self.network(*batch).asnumpy())


def weighted_mean(losses: Sequence[Tensor], weights: Sequence[float]) -> float:
    """Return the loss of a step from the losses of its micro-batches and their `token_weights`."""
    return float(np.mean([loss.asnumpy() * np.float32(weight) for loss, weight in zip(losses, weights, strict=True)]))
