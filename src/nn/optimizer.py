"""AdamWeightDecay, AdamW and LAMB, and the learning rate of each step.

The host computes the learning rate and the bias corrections from the number of the step. So the only state of an
optimizer is its two moments.
"""

import math
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.common.settings import TrainingConfig
from src.nn.operators import for_each


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step.

    It grows linearly to `learning_rate` in the warm-up, then falls along half a cosine to `end_learning_rate` at
    `decay_steps`.

    Args:
        config: Settings of the schedule.
        step: Number of optimizer steps before this one.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / (config.decay_steps - config.warmup_steps))
    span = config.learning_rate - config.end_learning_rate
    return config.end_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * done))


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to a parameter. It does not apply to LayerNorms and biases."""
    return "layernorm" not in name and "bias" not in name


@dataclass
class StepScalars:
    """Numbers that an optimizer step gets from the host.

    Args:
        learning_rate: Learning rate of the step.
        beta1_power: beta1 ** t for bias correction, with t from 1. 0 means no correction.
        beta2_power: beta2 ** t in the same way.
    """

    learning_rate: float
    beta1_power: float
    beta2_power: float

    @classmethod
    def at(cls, config: TrainingConfig, step: int, applied_steps: int) -> "StepScalars":
        """Return the scalars of a step. `applied_steps` counts earlier steps that overflow did not skip."""
        corrected = config.optimizer != "adam_weight_decay"
        powers = [beta ** (applied_steps + 1) if corrected else 0.0 for beta in (config.beta1, config.beta2)]
        return cls(learning_rate(config, step), *powers)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers as float32 scalars."""
        scalars = [Tensor(np.float32(value)) for value in (self.learning_rate, self.beta1_power, self.beta2_power)]
        return scalars[0], scalars[1], scalars[2]


class Update(nn.Cell):
    """Base class of the update of one parameter. The parameter and its moments change in place.

    Inputs:
        factor: float32 scalar that multiplies the gradient first.
        lr, beta1_power, beta2_power: float32 scalars of `StepScalars`.
        decay: Weight decay, a number.
        parameter, and its moments m and v (float32).
        gradient: Float tensor of the parameter's shape.

    Returns:
        A value for `ops.depend`.
    """

    def __init__(self, config: TrainingConfig):
        super().__init__()
        self.beta1, self.beta2, self.epsilon = config.beta1, config.beta2, config.epsilon
        self.assign = ops.Assign()
        self.sqrt = ops.Sqrt()
        self.cast = ops.Cast()

    def direction(
        self, m: Parameter, v: Parameter, gradient: Tensor, beta1_power: Tensor, beta2_power: Tensor
    ) -> Tensor:
        """Update the moments and return m / (sqrt(v) + epsilon), with bias correction."""
        m_next = self.assign(m, m * self.beta1 + gradient * (1.0 - self.beta1))
        v_next = self.assign(v, v * self.beta2 + gradient * gradient * (1.0 - self.beta2))
        return m_next / (1.0 - beta1_power) / (self.sqrt(v_next / (1.0 - beta2_power)) + self.epsilon)


class AdamUpdate(Update):
    """p <- p - lr * (m / (sqrt(v) + epsilon) + decay * p). float32 parameters use the fused operator."""

    def __init__(self, config: TrainingConfig):
        super().__init__(config)
        self.adam = ops.Adam()
        self.subtract_scaled = ops.ApplyGradientDescent()

    def construct(
        self,
        factor: Tensor,
        lr: Tensor,
        beta1_power: Tensor,
        beta2_power: Tensor,
        decay: float,
        parameter: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
    ) -> Tensor:
        gradient = self.cast(gradient, ms.float32) * factor
        if parameter.dtype != ms.float32:
            value = self.cast(parameter, ms.float32)
            change = self.direction(m, v, gradient, beta1_power, beta2_power) + decay * value
            return self.assign(parameter, self.cast(value - lr * change, parameter.dtype))
        if decay > 0:
            gradient = ops.depend(gradient, self.subtract_scaled(parameter, lr * decay, parameter))
        # The operator adds epsilon to the root before bias correction, so epsilon is scaled to act after it.
        epsilon = self.epsilon * self.sqrt(1.0 - beta2_power)
        return self.adam(parameter, m, v, beta1_power, beta2_power, lr, self.beta1, self.beta2, epsilon, gradient)[0]


class LambUpdate(Update):
    """LAMB (arXiv 1904.00962): the step of AdamW, scaled so that its norm is lr times the norm of the parameter."""

    def construct(
        self,
        factor: Tensor,
        lr: Tensor,
        beta1_power: Tensor,
        beta2_power: Tensor,
        decay: float,
        parameter: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
    ) -> Tensor:
        gradient = self.cast(gradient, ms.float32) * factor
        value = self.cast(parameter, ms.float32)
        change = self.direction(m, v, gradient, beta1_power, beta2_power) + decay * value
        value_norm, change_norm = self.sqrt(sum_of_squares(value)), self.sqrt(sum_of_squares(change))
        both = ops.logical_and(value_norm > 0, change_norm > 0)
        trust = ops.select(
            both, value_norm / ops.select(both, change_norm, ops.ones_like(change_norm)), ops.ones_like(value_norm)
        )
        return self.assign(parameter, self.cast(value - lr * trust * change, parameter.dtype))


_sum = ops.ReduceSum()


def sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of squares, a float32 scalar.

    The last axis is summed first. On a CPU this is three times faster than all axes at once, and as exact.
    """
    squares = ops.square(ops.cast(x, ms.float32))
    return _sum(_sum(squares, -1))


class Optimizer(nn.Cell):
    """Updates all parameters. Its moments have the names of MindSpore's AdamWeightDecay: adam_m.* and adam_v.*.

    Args:
        config: Kind of optimizer and its settings.
        parameters: Parameters to update.
        names: Names from which the moments get theirs, if `parameters` are parts of other parameters. The default is
            the names of `parameters`.

    Inputs:
        gradients: One float tensor for each parameter.
        factor: float32 scalar that multiplies each gradient first.
        lr, beta1_power, beta2_power: float32 scalars of `StepScalars`.

    Returns:
        Values for `ops.depend`.
    """

    def __init__(self, config: TrainingConfig, parameters: list[Parameter], names: list[str] | None = None):
        super().__init__(auto_prefix=False)
        names = names or [parameter.name for parameter in parameters]
        self.parameters = ParameterTuple(parameters)
        self.first_moments = self._moments("adam_m", names)
        self.second_moments = self._moments("adam_v", names)
        self.decays = tuple(config.weight_decay if is_decayed(name) else 0.0 for name in names)
        self.update = LambUpdate(config) if config.optimizer == "lamb" else AdamUpdate(config)

    def _moments(self, prefix: str, names: list[str]) -> ParameterTuple:
        return ParameterTuple(
            [
                Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"{prefix}.{name}", requires_grad=False)
                for p, name in zip(self.parameters, names, strict=True)
            ]
        )

    @property
    def state(self) -> list[Parameter]:
        """All moments, the first moments before the second ones."""
        return [*self.first_moments, *self.second_moments]

    def refresh(self) -> None:
        """Read parameters again after they were loaded. Here it does nothing: the parameters are updated in place."""

    def construct(
        self, gradients: tuple[Tensor, ...], factor: Tensor, lr: Tensor, beta1_power: Tensor, beta2_power: Tensor
    ) -> tuple[Tensor, ...]:
        return for_each(
            ops.partial(self.update, factor, lr, beta1_power, beta2_power),
            self.decays,
            self.parameters,
            self.first_moments,
            self.second_moments,
            gradients,
        )


def keep_on_host(optimizer: nn.Cell) -> None:
    """Let the host update the float32 parameters of an accelerator ("heterogeneous" training).

    Adam's moments, which take twice the memory of the weights, then stay in the memory of the host.
    """
    for _, cell in optimizer.cells_and_names():
        if isinstance(cell, AdamUpdate):
            cell.adam.set_device("CPU")
            cell.subtract_scaled.set_device("CPU")
