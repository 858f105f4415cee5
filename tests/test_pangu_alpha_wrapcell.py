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
        batches = [(Tensor(ids), *map(Tensor, eod_reset(ids, TINY.eod_token)), None, None) for ids in micro_batches]
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


def uneven(rows):
    """Return ids and a loss mask (rows, S) with few counted tokens in the first rows and many in the last ones."""
    ids, draw = random_ids(rows), np.random.default_rng(0)
    for row, pads in zip(ids, np.linspace(TINY.seq_length - 3, 0, rows).astype(int), strict=True):
        row[len(row) - pads :] = TINY.pad_token
    return ids, (draw.random((rows, TINY.seq_length)) < 0.7).astype(np.float32)


@pytest.mark.parametrize(
    "masked", [pytest.param(False, id="pads", marks=pytest.mark.slow), pytest.param(True, id="pads and a loss mask")]
)
def test_micro_batches_equal_one_batch(masked):
    """Each counted token weighs the same, though some micro-batches have more of them, and one may have none."""
    ids, loss_mask = uneven(8)
    loss_mask[:2] = 0.0
    found = []
    for parts in (1, 4):
        some = Steps(clip_norm=0.0, micro_batches=parts)
        batches = [
            (Tensor(rows), *map(Tensor, eod_reset(rows, TINY.eod_token)), Tensor(mask) if masked else None)
            for rows, mask in zip(np.split(ids, parts), np.split(loss_mask, parts), strict=True)
        ]
        result = some.stepper.train(2.0**10, StepScalars.at(TRAINING, 0, 0), batches)
        found.append((result, [moment.asnumpy() for moment in some.optimizer.first_moments]))
        sums = some.stepper.accumulator.sums if parts > 1 else []
        assert all((total.asnumpy() == 0).all() for total in sums)
    (whole, moments), (cut, moments_of_parts) = found
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    for name, one, other in zip(some.optimizer.parameters, moments, moments_of_parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(one).max(), 1e-3), err_msg=name.name)
