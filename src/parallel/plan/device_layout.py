"""How MindSpore's semi-automatic parallel slices a parameter over the devices of a pipeline stage.

A layout has a matrix of devices: device 0 comes first, and the last axis changes fastest. Each axis of a parameter is
sliced by none, one or several axes of that matrix. Devices with equal slices may share out the slice's rows.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from src.parallel.plan.sharding import Box


@dataclass(frozen=True)
class DeviceLayout:
    """How a parameter is sliced.

    Args:
        devices: Shape of the matrix of a stage's devices.
        axes: For each axis of the parameter, the axes of the matrix that slice it.
        rows: Number of rows of each slice of axis 0 if the numbers differ; empty if they are equal.
        shards: Number of devices that share out the rows of one slice; 1 if each device keeps all rows.
        stages: Pipeline stages that hold the parameter.
    """

    devices: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    shards: int
    stages: tuple[int, ...]

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of slices along each axis of the parameter, not counting the shards of rows."""
        return tuple(prod(self.devices[axis] for axis in axes) for axes in self.axes)

    def whole(self, held: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the whole parameter, given the shape that a device holds."""
        shape = tuple(size * parts for size, parts in zip(held, self.parts, strict=True))
        if self.rows:
            return (sum(self.rows), *shape[1:])
        return (shape[0] * self.shards, *shape[1:])

    def box(self, device: int, shape: tuple[int, ...]) -> Box:
        """Return the part of a parameter that a device holds.

        Args:
            device: Number of the device within its stage.
            shape: Shape of the whole parameter.
        """
        at = [int(number) for number in np.unravel_index(device, self.devices)]
        box = Box.whole(shape)
        for axis, (axes, parts) in enumerate(zip(self.axes, self.parts, strict=True)):
            which = 0
            for device_axis in axes:
                which = which * self.devices[device_axis] + at[device_axis]
            if axis == 0 and self.rows:
                ends = [0, *accumulate(self.rows)]
                box = Box((ends[which], *box.begin[1:]), (ends[which + 1], *box.end[1:]))
            else:
                box = box.part(axis, which, parts)
        if self.shards == 1:
            return box
        sliced = {axis for axes in self.axes for axis in axes}
        which = 0
        for axis, size in enumerate(self.devices):
            if axis not in sliced:
                which = which * size + at[axis]
        return box.part(0, which % self.shards, self.shards)
