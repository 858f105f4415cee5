"""The kernels as cells. Each has the inputs, outputs and gradients of the plain cell that its docstring names; all
arrays are float32, but labels int32."""

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.pangu_alpha_config import TrainingConfig


def _kernel(library: Path, name: str, out_shape: Callable | tuple) -> ops.Custom:
    """A kernel of the library as an operator whose outputs are float32.

    Args:
        out_shape: From the inputs' shapes to that of the output, or to a tuple of several, or the shape itself.
    """
    several = name.endswith("gradient") and name.startswith(("layernorm", "biased"))
    dtypes = ms.float32
    return ops.Custom(f"{library}:pangu_{name}", out_shape, dtypes, func_type="aot")
