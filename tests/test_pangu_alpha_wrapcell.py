from dataclasses import astuple

import numpy as np
import pytest
from mindspore import Tensor

from src.common.settings import TrainingConfig
from src.dataset import eod_reset
from src.nn.optimizer import Optimizer, StepScalars
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_wrapcell import ApplyGradients, GlobalNorm, Stepper
from tests.support.programs import TINY, random_ids, random_model

TRAINING = TrainingConfig(learning_rate=1e-2, end_learning_rate=1e-2, warmup_steps=0, steps=9)


class Steps:
    """A model with its stepper. `take` runs one optimizer step over micro-batches of ids."""

    def __init__(self, clip_norm=1.0, micro_batches=1):
        self.model, _ = random_model(seed=1, num_layers=2)
        parameters = self.model.trainable_params()
        self.optimizer = Optimizer(TRAINING, parameters)
        self.stepper = Stepper(
            PanguAlphaWithLoss(self.model.config, self.model),
            parameters,
            ApplyGradients(self.optimizer, clip_norm, micro_batches),
        )
        self.first_state = self.state()

    def state(self):
        sums = self.stepper.accumulator.sums if self.stepper.accumulator else []
        return [p.asnumpy().copy() for p in [*self.model.get_parameters(), *self.optimizer.state, *sums]]

    def take(self, *micro_batches, scale=1.0, number=0):
        """Return the loss, the norm and whether it is finite."""
        batches = [(Tensor(ids), *map(Tensor, eod_reset(ids, TINY.eod_token))) for ids in micro_batches]
        return astuple(self.stepper.train(scale, StepScalars.at(TRAINING, number, number), batches))


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_global_norm():
    draw = np.random.default_rng(0)
    values = [draw.normal(size=shape).astype(np.float32) for shape in ((3, 4), (70_000,), (2, 3, 4))]
    expected = np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in values))
    assert float(GlobalNorm()(tuple(map(Tensor, values)))) == pytest.approx(expected, rel=1e-6)


def test_the_loss_scale_changes_nothing_else():
    """A power of two changes exponents only, so the results are equal bit for bit."""
    ids, results = random_ids(2), []
    for scale in (1.0, 2.0**20):
        some = Steps()
        results.append(([some.take(ids, scale=scale, number=number) for number in range(2)], some.state()))
    (told, state), (other_told, other_state) = results
    assert told == other_told
    assert_same(state, other_state)


def test_overflow_leaves_everything_as_it_was():
    ids, some = random_ids(2), Steps()
    loss, norm, finite = some.take(ids, scale=3e38)
    assert np.isfinite(loss) and not np.isfinite(norm) and not finite
    assert_same(some.state(), some.first_state)
    assert some.take(ids)[2]
    assert any((one != other).any() for one, other in zip(some.state(), some.first_state, strict=True))


def test_overflow_in_a_micro_batch_does_not_reach_the_next_step():
    first, second = random_ids(2), random_ids(2, seed=1)
    some = Steps(micro_batches=2)
    assert not some.take(first, second, scale=3e38)[2]
    assert_same(some.state(), some.first_state)
    told = some.take(first, second)
    assert told[2] and told == Steps(micro_batches=2).take(first, second)


def test_clipping():
    """Adam's update hides the size of a gradient. After one step the first moment is (1 - beta1) * gradient."""
    ids, norms = random_ids(2), []
    for clip_norm in (0.0, 1.0):
        some = Steps(clip_norm)
        _, norm, _ = some.take(ids)
        moments = [moment.asnumpy().astype(np.float64) for moment in some.optimizer.first_moments]
        norms.append(np.sqrt(sum((moment**2).sum() for moment in moments)) / (1 - TRAINING.beta1))
    assert norm > 2
    assert norms == pytest.approx([norm, 1.0], rel=1e-5)


def test_micro_batches_equal_one_batch():
    """If all micro-batches have equally many tokens that count, the mean of their losses is the loss of all."""
    ids = random_ids(5)[:4]  # without the row that ends in pads
    whole, parts = Steps(), Steps(micro_batches=2)
    for number in range(2):
        loss, norm, _ = whole.take(ids, number=number)
        parts_loss, parts_norm, _ = parts.take(ids[:2], ids[2:], number=number)
        assert parts_loss == pytest.approx(loss, rel=1e-6) and parts_norm == pytest.approx(norm, rel=1e-5)
    for one, other in zip(whole.model.get_parameters(), parts.model.get_parameters(), strict=True):
        if not one.name.endswith("dense2.bias"):  # its true gradient is 0, and Adam scales up rounding noise
            np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=1e-4, err_msg=one.name)
    assert all((total.asnumpy() == 0).all() for total in parts.stepper.accumulator.sums)
