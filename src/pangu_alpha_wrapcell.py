"""What surrounds the loss: gradients that are accumulated, checked, clipped and applied."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.nn.optimizer import StepScalars, sum_of_squares
from src.pangu_alpha import PanguAlphaWithLoss


class Objective(nn.Cell):
    """What is differentiated: the loss, with that of unbalanced experts, times the loss scale; and the loss itself."""

    def __init__(self, network: PanguAlphaWithLoss):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, loss_scale: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        objective, loss = self.network.with_balance(*batch)
        return objective * loss_scale, loss


def zero_sums(parameters: Sequence[Parameter]) -> ParameterTuple:
    """Float32 parameters for sums of gradients."""
    return ParameterTuple(
        [
            Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"accumulated.{p.name}", requires_grad=False)
            for p in parameters
        ]
    )


def add_to(sums: ParameterTuple, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add gradients to their sums; something to depend on."""
    done = ()
    for i in range(len(gradients)):
        done += (ops.assign_add(sums[i], ops.cast(gradients[i], ms.float32)),)
    return done


def take(sums: ParameterTuple, gradients: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
    """What the sums hold, plus gradients; they are 0 afterwards."""
    totals = ()
    for i in range(len(sums)):
        total = sums[i] + (0.0 if gradients is None else ops.cast(gradients[i], ms.float32))
        totals += (ops.depend(total, ops.assign(sums[i], ops.zeros_like(ops.depend(sums[i], total)))),)
    return totals


class Accumulator(nn.Cell):
    """Adds the gradients of micro-batches up, for the step that follows.

    Inputs:
        loss_scale: float32 scalar that multiplies the loss before the backward pass.
        batch: What PanguAlphaWithLoss takes.

    Returns:
        The loss, unscaled.
    """

    def __init__(self, network: PanguAlphaWithLoss, parameters: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.sums = zero_sums(parameters)
        self.value_and_gradients = ms.value_and_grad(Objective(network), None, ParameterTuple(parameters), has_aux=True)

    def construct(self, loss_scale: Tensor, *batch: Tensor) -> Tensor:
        (_, loss), gradients = self.value_and_gradients(loss_scale, *batch)
        return ops.depend(loss, add_to(self.sums, gradients))


class GlobalNorm(nn.Cell):
    """Root of the sum of all squares of some tensors: a float32 scalar."""

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        squares = ()
        for x in tensors:
            squares += (sum_of_squares(x),)
        return ops.sqrt(ops.addn(squares))


class ApplyGradients(nn.Cell):
    """Overflow check, clipping by global norm, and the update. Where a gradient is not finite, nothing is updated.

    Args:
        optimizer: Takes what `reduce_gradients` returns.
        clip_norm: Largest global norm; 0 for no clipping.
        micro_batches: Whose gradients were added up.

    Inputs:
        gradients; loss_scale, lr, beta1_power, beta2_power: float32 scalars; the last three of `StepScalars`.

    Returns:
        The gradients' global norm before clipping, unscaled; whether it is finite.
    """

    def __init__(self, optimizer: nn.Cell, clip_norm: float, micro_batches: int = 1):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.reduce_gradients = nn.Identity()
        self.global_norm = GlobalNorm()
        self.micro_batches = micro_batches
        self.clip_norm = clip_norm

    def construct(
        self, gradients: tuple[Tensor, ...], loss_scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradients = self.reduce_gradients(gradients)
        unscale = 1.0 / (loss_scale * self.micro_batches)
        norm = self.global_norm(gradients) * unscale
        finite = ops.isfinite(norm)
        factor = unscale
        if self.clip_norm > 0:
            factor = unscale * (self.clip_norm / ops.maximum(norm, Tensor(self.clip_norm, ms.float32)))
        if finite:
            finite = ops.depend(finite, self.optimizer(gradients, factor, lr, beta1_power, beta2_power))
        return norm, finite


class TrainStep(nn.Cell):
    """Loss and gradients of the last micro-batch, and with what was accumulated before them the update, in one graph.

    Inputs:
        loss_scale, lr, beta1_power, beta2_power: float32 scalars; the last three of `StepScalars`.
        batch: What PanguAlphaWithLoss takes.

    Returns:
        The loss, and what ApplyGradients returns. All unscaled.
    """

    def __init__(
        self,
        network: PanguAlphaWithLoss,
        parameters: list[Parameter],
        apply_gradients: ApplyGradients,
        accumulator: Accumulator | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.value_and_gradients = ms.value_and_grad(Objective(network), None, ParameterTuple(parameters), has_aux=True)
        self.apply_gradients = apply_gradients
        self.sums = accumulator.sums if accumulator else None

    def construct(
        self, loss_scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor, *batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (_, loss), gradients = self.value_and_gradients(loss_scale, *batch)
        if self.sums is not None:
            gradients = take(self.sums, gradients)
        return (loss,) + self.apply_gradients(gradients, loss_scale, lr, beta1_power, beta2_power)


@dataclass
class StepResult:
    """What an optimizer step tells.

    Args:
        loss: Mean over the micro-batches of this rank's share of the loss.
        gradient_norm: Global norm before clipping.
        finite: Whether it was finite, and so the weights updated.
    """

    loss: float
    gradient_norm: float
    finite: bool


# What PanguAlphaWithLoss takes: ids, position_ids, attention_mask, and loss_mask and dropout_key, which may be missing.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class Stepper:
    """Optimizer steps of a model that is whole on this device, or sliced but not in stages."""

    def __init__(self, network: PanguAlphaWithLoss, parameters: list[Parameter], apply_gradients: ApplyGradients):
        self.network = network
        several = apply_gradients.micro_batches > 1
        self.accumulator = Accumulator(network, parameters) if several else None
        self.train_step = TrainStep(network, parameters, apply_gradients, self.accumulator)

    def train(self, loss_scale: float, scalars: StepScalars, micro_batches: Iterable[Inputs]) -> StepResult:
        """One optimizer step over micro-batches, each what PanguAlphaWithLoss takes."""
        scale, losses = Tensor(np.float32(loss_scale)), []
        *first, last = micro_batches
        for batch in first:
            assert self.accumulator, "several micro-batches, but apply_gradients.micro_batches is 1"
            losses.append(self.accumulator(scale, *batch))
        loss, norm, finite = self.train_step(scale, *scalars.tensors(), *last)
        return StepResult(
            float(np.mean([x.asnumpy() for x in [*losses, loss]])), float(norm.asnumpy()), bool(finite.asnumpy())
        )

    def evaluate(self, batch: Inputs) -> float:
        """This rank's share of the loss of a batch."""
        return float(self.network(*batch).asnumpy())
