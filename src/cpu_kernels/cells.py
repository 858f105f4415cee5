"""The kernels as cells: inputs, outputs and gradients are those of the plain cells whose names they bear in
src/nn/operators.py, src/nn/optimizer.py and src/pangu_alpha_wrapcell.py. All arrays are float32, but labels int32."""

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

Shape = Sequence[int]


def _kernel(
    library: Path, name: str, out_shapes: Callable[..., Shape | tuple[Shape, ...]], outputs: int = 1
) -> ops.Custom:
    """A function of the library as an operator with float32 outputs, their shapes given by those of the inputs."""
    dtypes = ms.float32 if outputs == 1 else (ms.float32,) * outputs

    def out_dtypes(*_: ms.Type) -> ms.Type | tuple[ms.Type, ...]:
        return dtypes

    return ops.Custom(f"{library}:pangu_{name}", out_shapes, out_dtypes, func_type="aot")


def _as_first(first: Shape, *_: Shape) -> Shape:
    return first


def _as_first_two(first: Shape, second: Shape, *_: Shape) -> tuple[Shape, Shape]:
    return first, second


def _as_first_and_width(first: Shape, width: Shape, *_: Shape) -> tuple[Shape, Shape, Shape]:
    return first, width, width


def _as_rows(first: Shape, *_: Shape) -> Shape:
    return first[:1]


def _swapped(first: Shape, *_: Shape) -> Shape:
    return first[0], first[2], first[1], first[3]


def _one(*_: Shape) -> Shape:
    return (1,)


class Normalize(nn.Cell):
    """LayerNorm; the gradient computes means and variances again, which is cheaper than to keep them."""

    def __init__(self, library: Path, epsilon: float):
        super().__init__()
        self.epsilon = Tensor(np.float32(epsilon))
        self.forward = _kernel(library, "layernorm", _as_first)
        self.backward = _kernel(library, "layernorm_gradient", _as_first_and_width, outputs=3)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return self.forward(x, gamma, beta, self.epsilon)

    def bprop(self, x: Tensor, gamma: Tensor, beta: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, gamma and beta."""
        return self.backward(x, gamma, self.epsilon, dout)


class MaskedSoftmax(nn.Cell):
    """Softmax of scores (B, A, Q, K) + bias (B, 1, Q, K)."""

    def __init__(self, library: Path):
        super().__init__()
        self.forward = _kernel(library, "masked_softmax", _as_first)
        self.backward = _kernel(library, "masked_softmax_gradient", _as_first)

    def construct(self, scores: Tensor, bias: Tensor) -> Tensor:
        return self.forward(scores, bias)

    def bprop(self, scores: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the scores; a mask has none."""
        return self.backward(out, dout), ops.zeros_like(bias)


class SwapAxes(nn.Cell):
    """The middle axes of four swapped, times a constant."""

    def __init__(self, library: Path, factor: float):
        super().__init__()
        self.factor = Tensor(np.float32(factor))
        self.swap = _kernel(library, "swap_axes", _swapped)

    def construct(self, x: Tensor) -> Tensor:
        return self.swap(x, self.factor)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        return (self.swap(dout, self.factor),)


class BiasedFastGelu(nn.Cell):
    """FastGelu of x (F, N) + bias (F,), which each have a gradient from one pass."""

    def __init__(self, library: Path):
        super().__init__()
        self.forward = _kernel(library, "biased_fast_gelu", _as_first)
        self.backward = _kernel(library, "biased_fast_gelu_gradient", _as_first_two, outputs=2)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and bias."""
        return self.backward(x, bias, dout)


class CrossEntropy(nn.Cell):
    """Negative log-likelihood of each row; its gradient has the softmax's denominator from the loss itself."""

    def __init__(self, library: Path):
        super().__init__()
        self.forward = _kernel(library, "cross_entropy", _as_rows)
        self.backward = _kernel(library, "cross_entropy_gradient", _as_first)

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.forward(logits, labels)

    def bprop(self, logits: Tensor, labels: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the logits; labels have none."""
        return self.backward(logits, labels, out, dout), ops.zeros_like(labels)


class GlobalNorm(nn.Cell):
    """Root of the sum of all squares, added up in float64."""

    def __init__(self, library: Path):
        super().__init__()
        self.norm = _kernel(library, "global_norm", _one)
        self.reshape = ops.Reshape()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return self.reshape(self.norm(*tensors), ())


class AdamUpdate(nn.Cell):
    """Clipping, moments, weight decay and step of one parameter in one pass, in place."""

    def __init__(self, library: Path, beta1: float, beta2: float, epsilon: float):
        super().__init__()
        constants = [beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon]
        self.constants = Tensor(np.array(constants, np.float32))
        self.update = _kernel(library, "adam_update", _one)
        self.update.add_prim_attr("side_effect_mem", True)  # whoever reads the parameter later reads the new values

    def construct(
        self,
        decay: float,
        parameter: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
        factor: Tensor,
        lr: Tensor,
        beta1_power: Tensor,
        beta2_power: Tensor,
    ) -> Tensor:
        return self.update(
            parameter, m, v, gradient, factor, lr, beta1_power, beta2_power, Tensor(decay, ms.float32), self.constants
        )
