"""The kernels as cells.

A cell has the name, inputs, outputs and gradients of a plain cell in src/nn/operators.py, src/nn/optimizer.py or
src/pangu_alpha_wrapcell.py. Arrays are float32; labels are int32.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

Shape = Sequence[int]


def kernel(
    library: Path,
    name: str,
    out_shapes: Callable[..., Shape | tuple[Shape, ...]],
    outputs: int = 1,
    bprop: Callable[..., tuple[Tensor, ...]] | None = None,
) -> ops.Custom:
    """Make an operator with float32 outputs from a kernel. `out_shapes` maps the shapes of the inputs to theirs.

    `bprop` takes the inputs, the output and its gradient, and returns the gradients of the inputs. It belongs to the
    operator, because MindSpore keeps all inputs and outputs of a cell that has its own, even if the cell is recomputed.
    """
    dtypes = ms.float32 if outputs == 1 else (ms.float32,) * outputs

    def out_dtypes(*_: ms.Type) -> ms.Type | tuple[ms.Type, ...]:
        return dtypes

    return ops.Custom(f"{library}:pangu_{name}", out_shapes, out_dtypes, func_type="aot", bprop=bprop)


def _as_first(first: Shape, *_: Shape) -> Shape:
    return first


def _as_first_two(first: Shape, second: Shape, *_: Shape) -> tuple[Shape, Shape]:
    return first, second


def _as_first_and_width(first: Shape, width: Shape, *_: Shape) -> tuple[Shape, Shape, Shape]:
    return first, width, width


def _as_rows(first: Shape, *_: Shape) -> Shape:
    return first[:1]


def _one(*_: Shape) -> Shape:
    return (1,)


class Product(nn.Cell):
    """Product of two float32 matrices. Call onednn.has_gemm before.

    Args:
        library: The compiled kernels.
        input_transposed: a is (inner, rows) instead of (rows, inner).
        weight_transposed: b is (columns, inner) instead of (inner, columns).

    Inputs:
        a and b.

    Returns:
        (rows, columns).
    """

    KERNEL = "product"

    def __init__(self, library: Path, input_transposed: bool = False, weight_transposed: bool = False):
        super().__init__()
        self.weight_transposed = weight_transposed
        self.transposed = Tensor(np.array([input_transposed, weight_transposed], np.int32))

        def out_shape(a: Shape, b: Shape, *_: Shape) -> Shape:
            return a[1 if input_transposed else 0], b[0 if weight_transposed else 1]

        backward = kernel(library, f"{self.KERNEL}_gradient", _as_first_two, outputs=2)

        def bprop(a: Tensor, b: Tensor, transposed: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
            da, db = backward(a, b, transposed, dout)
            return da, db, ops.zeros_like(transposed)

        self.forward = kernel(library, self.KERNEL, out_shape, bprop=bprop)

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        return self.forward(a, b, self.transposed)


class HalfProduct(Product):
    """The same with both matrices rounded to bfloat16, and float32 sums. So are the products that give its gradients.

    Call onednn.has_half_gemm before.
    """

    KERNEL = "half_product"


class Normalize(nn.Cell):
    """LayerNorm. Its gradient computes means and variances again, because that is cheaper than keeping them."""

    def __init__(self, library: Path, epsilon: float):
        super().__init__()
        self.epsilon = Tensor(np.float32(epsilon))
        backward = kernel(library, "layernorm_gradient", _as_first_and_width, outputs=3)

        def bprop(
            x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, out: Tensor, dout: Tensor
        ) -> tuple[Tensor, ...]:
            dx, dgamma, dbeta = backward(x, gamma, epsilon, dout)
            return dx, dgamma, dbeta, ops.zeros_like(epsilon)

        self.forward = kernel(library, "layernorm", _as_first, bprop=bprop)

    def construct(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return self.forward(x, gamma, beta, self.epsilon)


class BiasedFastGelu(nn.Cell):
    """FastGelu of x (F, N) + bias (F,). One pass computes both gradients."""

    def __init__(self, library: Path):
        super().__init__()
        backward = kernel(library, "biased_fast_gelu_gradient", _as_first_two, outputs=2)

        def bprop(x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
            dx, dbias = backward(x, bias, dout)
            return dx, dbias

        self.forward = kernel(library, "biased_fast_gelu", _as_first, bprop=bprop)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.forward(x, bias)


class CrossEntropy(nn.Cell):
    """Negative log-likelihood of each row. Its gradient derives the denominator of the softmax from the loss."""

    def __init__(self, library: Path):
        super().__init__()
        backward = kernel(library, "cross_entropy_gradient", _as_first)

        def bprop(logits: Tensor, labels: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
            return backward(logits, labels, out, dout), ops.zeros_like(labels)

        self.forward = kernel(library, "cross_entropy", _as_rows, bprop=bprop)

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.forward(logits, labels)


class GlobalNorm(nn.Cell):
    """Square root of the sum of all squares, summed in float64."""

    def __init__(self, library: Path):
        super().__init__()
        self.norm = kernel(library, "global_norm", _one)
        self.reshape = ops.Reshape()

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return self.reshape(self.norm(*tensors), ())


class AdamUpdate(nn.Cell):
    """Update of one parameter in place: clipping, moments, weight decay and step in one pass."""

    def __init__(self, library: Path, beta1: float, beta2: float, epsilon: float):
        super().__init__()
        constants = [beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon]
        self.constants = Tensor(np.array(constants, np.float32))
        self.update = kernel(library, "adam_update", _one)
        self.update.add_prim_attr("side_effect_mem", True)  # later readers of the parameter get the new values

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
        return self.update(
            parameter, m, v, gradient, factor, lr, beta1_power, beta2_power, Tensor(decay, ms.float32), self.constants
        )
