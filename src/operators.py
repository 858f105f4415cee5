"""Operators with gradients written by hand, where MindSpore's own are several times slower on a CPU.

On Ascend and GPU they compute the same from the same primitives.
"""

from mindspore import Tensor, nn, ops


class Affine(nn.Cell):
    """x @ weight + bias. The bias's gradient is a product with ones: four times faster than a sum over rows, and 30
    times faster than BiasAdd's own.

    Args:
        weight_transposed: The weight is stored (out, in) rather than (in, out).
        input_transposed: x comes as (in, N) rather than (N, in).

    Inputs:
        x, weight, bias (out,), all of one dtype.

    Returns:
        (N, out).
    """

    def __init__(self, weight_transposed: bool = False, input_transposed: bool = False):
        super().__init__()
        self.weight_transposed, self.input_transposed = weight_transposed, input_transposed
        self.matmul = ops.MatMul(transpose_a=input_transposed, transpose_b=weight_transposed)
        self.bias_add = ops.BiasAdd()
        self.reshape = ops.Reshape()
        self.ones = ops.Ones()
        self.nn = ops.MatMul()
        self.nt = ops.MatMul(transpose_b=True)
        self.tn = ops.MatMul(transpose_a=True)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.bias_add(self.matmul(x, weight), bias)

    def bprop(self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor,
              dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""
        dbias = self.reshape(self.nn(self.ones((1, dout.shape[0]), dout.dtype), dout), (-1,))
        if self.weight_transposed:
            return self.nn(dout, weight), self.tn(dout, x), dbias
        if self.input_transposed:
            return self.nt(weight, dout), self.nn(x, dout), dbias
        return self.nt(dout, weight), self.tn(x, dout), dbias


class Softmax(nn.Cell):
    """Softmax over the last axis. Its gradient, p * (dp - sum(p * dp)), sums a matrix, MindSpore's own four axes."""

    def __init__(self):
        super().__init__()
        self.softmax = ops.Softmax(axis=-1)
        self.mul = ops.Mul()
        self.sub = ops.Sub()
        self.sum = ops.ReduceSum(keep_dims=True)
        self.reshape = ops.Reshape()

    def construct(self, x: Tensor) -> Tensor:
        return self.softmax(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """The gradient of x."""
        p = self.reshape(out, (-1, out.shape[-1]))
        weighted = self.mul(p, self.reshape(dout, p.shape))
        return (self.reshape(self.sub(weighted, self.mul(p, self.sum(weighted, -1))), out.shape),)


class CrossEntropy(nn.Cell):
    """Negative log-likelihood of each row: logits (N, V) float32, labels (N,) int32 -> (N,) float32.

    The gradient, softmax minus one-hot, comes from the fused operator. Its forward pass is not used: it knows only the
    mean, and adds that up in one float32.
    """

    def __init__(self):
        super().__init__()
        self.log_softmax = ops.LogSoftmax(axis=-1)
        self.gather = ops.GatherD()
        self.mean_gradient = ops.SparseSoftmaxCrossEntropyWithLogits(is_grad=True)
        self.reshape = ops.Reshape()
        self.mul = ops.Mul()
        self.neg = ops.Neg()

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        picked = self.gather(self.log_softmax(logits), 1, self.reshape(labels, (-1, 1)))
        return self.neg(self.reshape(picked, (-1,)))

    def bprop(self, logits: Tensor, labels: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the logits; labels have none."""
        rows = self.reshape(self.mul(dout, labels.shape[0]), (-1, 1))
        return self.mul(self.mean_gradient(logits, labels), rows), ops.zeros_like(labels)
