"""Overflow on Ascend 910A. Its float arithmetic saturates, so that an overflow may leave every gradient finite.

The chip has a status register, which an overflow sets. It is cleared before the first forward pass of a step and read
after its last backward pass. A step updates the weights only if no rank's register was set and the norm of the
gradients is finite. The other chips compute infinities, and need no register.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

from src.nn.operators import after
from src.pangu_alpha_wrapcell import IsFinite


class FiniteByRegister(IsFinite):
    """Replaces `is_finite` of ApplyGradients on a 910A.

    MindSpore's operators take and return int32 (8,), the register. What they take has no meaning, but gives them their
    place in the order of a graph.

    Args:
        total: Sum of a float32 scalar over all ranks.
    """

    def __init__(self, total: nn.Cell | ops.Primitive):
        super().__init__()
        self.clear_register, self.read_register = NPUClearFloatStatusV2(), NPUGetFloatStatusV2()
        self.not_equal, self.cast, self.largest = ops.NotEqual(), ops.Cast(), ops.ReduceMax()
        self.total = total
        self.nothing = Tensor(np.zeros(8, np.int32))

    def begin(self) -> None:
        """Clear the register, and wait until it is clear: other graphs, such as those of validation, may have set it.

        The passes' own graphs can't do it. MindSpore compiles no pipeline whose inputs wait for another operator.
        """
        self.clear_register(self.nothing).asnumpy()

    def construct(self, norm: Tensor) -> Tensor:
        register = self.read_register(after(norm, self.nothing))
        overflow = self.largest(self.cast(self.not_equal(register, 0), ms.float32))
        return ops.logical_and(ops.isfinite(norm), self.total(overflow) == 0)
