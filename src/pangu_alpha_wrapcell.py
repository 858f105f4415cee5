"""The cells around the loss: one that accumulates gradients, one that takes an optimizer step."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.optimizer import Optimizer, sum_of_squares
from src.pangu_alpha import PanguAlphaWithLoss


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
        self.network = network
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.parameters = ParameterTuple(parameters)
        self.sums = ParameterTuple([Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"accumulated.{p.name}",
                                              requires_grad=False) for p in parameters])

    def construct(self, loss_scale: Tensor, *batch: Tensor) -> Tensor:
        loss = self.network(*batch)
        gradients = self.gradient(self.network, self.parameters)(*batch, loss_scale)
        done = ()
        for i in range(len(gradients)):
            done += (ops.assign_add(self.sums[i], ops.cast(gradients[i], ms.float32)),)
        return ops.depend(loss, done)


class GlobalNorm(nn.Cell):
    """Root of the sum of all squares of some tensors: a float32 scalar."""

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        squares = ()
        for x in tensors:
            squares += (sum_of_squares(x),)
        return ops.sqrt(ops.addn(squares))


class TrainStep(nn.Cell):
    """Loss, gradients, overflow check, clipping by global norm, and the update, in one graph.

    Inputs:
        loss_scale, lr, beta1_power, beta2_power: float32 scalars; the last three of `StepScalars`.
        batch: What PanguAlphaWithLoss takes.

    Returns:
        The loss; the gradients' global norm before clipping; whether all gradients were finite. Where they were not,
        nothing has been updated. All unscaled.
    """

    def __init__(self, network: PanguAlphaWithLoss, optimizer: Optimizer, clip_norm: float,
                 accumulator: Accumulator | None = None, micro_batches: int = 1):
        super().__init__(auto_prefix=False)
        self.network = network
        self.optimizer = optimizer
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.global_norm = GlobalNorm()
        self.sums = accumulator.sums if accumulator else None
        self.micro_batches = micro_batches
        self.clip_norm = clip_norm

    def construct(self, loss_scale: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor,
                  *batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.network(*batch)
        gradients = self.gradient(self.network, self.optimizer.parameters)(*batch, loss_scale)
        if self.sums is not None:
            gradients = self._with_accumulated(gradients)
        unscale = 1.0 / (loss_scale * self.micro_batches)
        norm = self.global_norm(gradients) * unscale
        finite = ops.isfinite(norm)
        factor = unscale
        if self.clip_norm > 0:
            factor = unscale * (self.clip_norm / ops.maximum(norm, Tensor(self.clip_norm, ms.float32)))
        if finite:
            finite = ops.depend(finite, self.optimizer(gradients, factor, lr, beta1_power, beta2_power))
        return loss, norm, finite

    def _with_accumulated(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        totals = ()
        for i in range(len(gradients)):
            total = self.sums[i] + ops.cast(gradients[i], ms.float32)
            totals += (ops.depend(total, ops.assign(self.sums[i], ops.zeros_like(ops.depend(self.sums[i], total)))),)
        return totals
