"""Helpers of the conversion tests: a small model's parameters in all dtypes, and conversions."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from src.checkpoint import ckpt_file
from src.checkpoint.conversion import convert
from src.checkpoint.convert_arguments import ConvertArguments
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.sharding import Box, parameter_shapes
from tests.support.checkpoints import BFLOAT16

DTYPES = (np.dtype("float32"), np.dtype("float16"), BFLOAT16)
SMALL = PanguAlphaConfig(vocab_size=52, hidden_size=32, num_layers=3, num_heads=4, seq_length=16)


def mixed_values(model=SMALL, seed=0):
    """Return parameters by name, in each dtype in turn, with large and tiny numbers and negative zeros."""
    draw = np.random.default_rng(seed)
    values = {}
    for number, (name, shape) in enumerate(parameter_shapes(model).items()):
        array = (draw.normal(size=shape) * 10.0 ** draw.integers(-6, 4, shape)).astype(np.float32)
        array.flat[0] = -0.0
        values[name] = array.astype(DTYPES[number % 3])
    return values


def write_checkpoint(path, values):
    """Write a .ckpt file with these parameters, and return its path."""
    ckpt_file.write(Path(path), values.items())
    return Path(path)


def read_checkpoint(path):
    """Read the parameters of a .ckpt file."""
    return {
        name: ckpt_file.read(Path(path), stored, Box.whole(stored.shape))
        for name, stored in ckpt_file.index(Path(path)).items()
    }


def arguments(from_, to, checkpoint, output, **others):
    """Return parsed command-line arguments of a conversion."""
    return ConvertArguments(
        from_,
        to,
        str(checkpoint),
        str(output),
        others.pop("parallel", ParallelConfig()),
        **{"num_heads": SMALL.num_heads} | others,
    )


def converted(*positional, **others):
    """Convert, and return the summary."""
    return convert(arguments(*positional, **others))


def small(**changes):
    """Return SMALL with `changes`."""
    return replace(SMALL, **changes)
