"""Initial values of a rank's slices of the parameters."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common.initializer import Normal, One

from src.parallel.plan.sharding import Box


def allocate(
    parameters: Iterable[Parameter], box_of: Callable[[str], Box], seed: int | None, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Give each parameter that was built without data this rank's slice of its initial value.

    An initial value depends only on the seed and the parameter's name, so it is the same under every plan.

    Args:
        parameters: Parameters that were built under `no_init_parameters`.
        box_of: Returns the box that this rank holds of a parameter, given its name.
        seed: Seed of the run; None for zeros, where values are loaded.
        shapes: Shapes of whole parameters, by name.
    """
    for parameter in parameters:
        box = box_of(parameter.name)
        dtype = np.dtype(str(parameter.dtype).lower()) if seed is None else np.float32
        value = np.zeros(box.shape, dtype) if seed is None else _initial(parameter, shapes, seed)[box.index]
        parameter.set_data(Tensor(np.ascontiguousarray(value), parameter.dtype), slice_shape=True)


def _initial(parameter: Parameter, shapes: Mapping[str, Sequence[int]], seed: int) -> np.ndarray:
    kind, shape = parameter.init_mode.init, shapes[parameter.name]
    if not isinstance(kind, Normal):
        return np.full(shape, float(isinstance(kind, One)), np.float32)
    draw = np.random.Generator(np.random.Philox(key=(seed, zlib.crc32(parameter.name.encode()))))
    return draw.standard_normal(shape, np.float32) * np.float32(kind.sigma)
