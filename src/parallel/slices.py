"""A rank's slices of a model's parameters: how they begin, and what a checkpoint calls them."""

import zlib

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common.initializer import Normal, One

from src.pangu_alpha import PanguAlphaModel
from src.parallel import sharding
from src.parallel.mesh import Mesh


def allocate(model: PanguAlphaModel, mesh: Mesh, seed: int | None) -> None:
    """Give each parameter of a model that was built without data this rank's slice of its initial value.

    An initial value is drawn from the seed and the parameter's name alone, so that it is the same under every plan.

    Args:
        model: Built under `no_init_parameters`.
        mesh: Whose slices.
        seed: Of the run; None leaves zeros, for values that are loaded.
    """
    for parameter in model.get_parameters():
        box = sharding.box(parameter.name, parameter.shape, mesh.plan, mesh.at)
        dtype = np.dtype(str(parameter.dtype).lower()) if seed is None else np.float32
        value = np.zeros(box.shape, dtype) if seed is None else _initial(parameter, seed)[box.index]
        parameter.set_data(Tensor(np.ascontiguousarray(value), parameter.dtype), slice_shape=True)


def _initial(parameter: Parameter, seed: int) -> np.ndarray:
    kind = parameter.init_mode.init
    if not isinstance(kind, Normal):
        return np.full(parameter.shape, float(isinstance(kind, One)), np.float32)
    draw = np.random.Generator(np.random.Philox(key=(seed, zlib.crc32(parameter.name.encode()))))
    return draw.standard_normal(parameter.shape, np.float32) * np.float32(kind.sigma)


