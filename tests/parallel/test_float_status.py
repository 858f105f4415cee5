"""The overflow register of a 910A, emulated by Python functions that a graph calls where its data tell it to."""

from dataclasses import astuple, replace

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig
from src.dataset import eod_reset
from src.nn.optimizer import StepScalars
from src.pangu_alpha_config import RunConfig
from src.parallel.explicit.build import build_chunks, build_stepper
from src.parallel.mesh import Mesh
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.train_step import SemiAutoStepper, build_train_step
from tests.support.programs import TINY, random_ids, random_weights
from tests.test_pangu_alpha_wrapcell import TRAINING


class Chip:
    """A register, and cells that clear, read and set it. MindSpore sees functions of their inputs alone."""

    def __init__(self):
        self.register, self.overflows = np.zeros(8, np.int32), []

    def clear(self, x):
        self.register[:] = 0
        return x

    def read(self, x):
        return self.register.copy()

    def compute(self, x):
        """Stand for a forward pass: set the register if the next one of `overflows` says so."""
        self.register[3] += self.overflows.pop(0)
        return x


class Others(nn.Cell):
    """Stands for the sum over all ranks. The other ones have `number` overflows."""

    def __init__(self):
        super().__init__()
        self.number = 0.0

    def construct(self, x):
        return x + self.number


def custom(function):
    return ops.Custom(function, out_shape=lambda x: x, out_dtype=lambda x: x, func_type="pyfunc")


class Computing(nn.Cell):
    """An operator of the forward pass, after which the chip computes."""

    def __init__(self, operator, chip):
        super().__init__()
        self.operator, self.compute = operator, custom(chip.compute)

    def construct(self, *inputs):
        return self.compute(self.operator(*inputs))


class Steps:
    """One device's training by an engine, on an emulated 910A."""

    def __init__(self, engine, micro_batches, others=0.0):
        parallel = ParallelConfig(device_target="Ascend", chip="910A")
        training = replace(TRAINING, accumulation_steps=micro_batches, batch_size=2)
        config = RunConfig(replace(TINY, num_layers=2), DataConfig(), training, parallel, GenerationConfig())
        [model] = build_chunks(config.model, Mesh(Plan(num_layers=2)), seed=None)
        self.chip, self.others = Chip(), Others()
        self.others.number = others
        if engine == "explicit":
            self.stepper, self.optimizer = build_stepper(config, [model], Mesh(Plan(num_layers=2)))
            network, finite = self.stepper.network, self.stepper.is_finite
        else:
            step, self.optimizer = build_train_step(config, model, rank=0)
            self.stepper = SemiAutoStepper(step, Plan(num_layers=2), 0, micro_batches)
            network, finite = step.loss, step.apply_gradients.is_finite
            for sums in (self.optimizer.state, step.held_sums):
                for one in sums:
                    one.set_data(Tensor(np.zeros(one.shape, np.float32)))
        finite.total = self.others
        finite.clear_register, finite.read_register = self.chip.clear, custom(self.chip.read)
        network.not_equal = Computing(network.not_equal, self.chip)
        random_weights(model)
        self.parameters, self.micro_batches = model.trainable_params(), micro_batches

    def take(self, *overflows):
        """Return whether a step updates the weights. Its gradients are finite, but some passes may overflow."""
        self.chip.overflows = list(overflows)
        before = [parameter.asnumpy().copy() for parameter in self.parameters]
        ids = random_ids(2)
        batch = (Tensor(ids), *map(Tensor, eod_reset(ids, TINY.eod_token)), None, None)
        result = self.stepper.train(1.0, StepScalars.at(TRAINING, 0, 0), [batch] * self.micro_batches)
        assert np.isfinite(astuple(result)[:2]).all()
        changed = [(parameter.asnumpy() != old).any() for parameter, old in zip(self.parameters, before, strict=True)]
        assert any(changed) == result.finite
        return result.finite


@pytest.mark.parametrize("engine, passes", [("explicit", 1), ("semi_auto", 1), ("explicit", 2)])
def test_an_overflow_of_a_pass_skips_the_update_and_an_older_one_does_not(engine, passes):
    steps, clean = Steps(engine, passes), [False] * passes
    steps.chip.register[0] = 1  # by validation, or by anything else before the step
    assert steps.take(*clean)
    for number in range(passes):
        assert not steps.take(*(number == other for other in range(passes)))
        assert steps.take(*clean)


@pytest.mark.parametrize("engine", ["explicit", "semi_auto"])
def test_an_overflow_of_another_rank_skips_the_update(engine):
    assert not Steps(engine, 1, others=1.0).take(False)
