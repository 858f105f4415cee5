import numpy as np
import pytest
from mindspore import Tensor

from src.dataset import eod_reset
from src.dropout import dropout_keys
from src.optimizer import Optimizer, StepScalars
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_config import TrainingConfig
from src.pangu_alpha_wrapcell import Accumulator, TrainStep, global_norm
from src.trainer import LossScale
from tests.helpers import TINY, random_ids, random_model

TRAINING = TrainingConfig(learning_rate=1e-2, end_learning_rate=1e-2, warmup_steps=0, steps=9)


class Stepper:
    """A model with its train step; `take` runs one optimizer step over micro-batches of ids."""

    def __init__(self, clip_norm=1.0, micro_batches=1, recompute=False, dropout_rate=0.0):
        self.model, _ = random_model(seed=1, num_layers=2, dropout_rate=dropout_rate)
        parameters = self.model.trainable_params()
        if recompute:
            for layer in [*self.model.backbone.blocks, self.model.backbone.top_query_layer]:
                layer.recompute()
        network = PanguAlphaWithLoss(self.model.config, self.model)
        self.optimizer = Optimizer(TRAINING, parameters)
        self.accumulator = Accumulator(network, parameters) if micro_batches > 1 else None
        self.step = TrainStep(network, self.optimizer, clip_norm, self.accumulator, micro_batches)
        self.with_keys = dropout_rate > 0

    def take(self, *micro_batches, scale=1.0, number=0):
        """Losses, norm, whether finite."""
        scale, losses = Tensor(np.float32(scale)), []
        for place, ids in enumerate(micro_batches):
            keys = (None, Tensor(dropout_keys(0, number, place, len(ids)))) if self.with_keys else ()
            inputs = (Tensor(ids), *map(Tensor, eod_reset(ids, TINY.eod_token)), *keys)
            if place < len(micro_batches) - 1:
                losses.append(float(self.accumulator(scale, *inputs)))
        loss, norm, finite = self.step(scale, *StepScalars.at(TRAINING, number, number).tensors(), *inputs)
        return [*losses, float(loss)], float(norm), bool(finite)

    def state(self):
        sums = self.accumulator.sums if self.accumulator else []
        return [p.asnumpy().copy() for p in [*self.model.get_parameters(), *self.optimizer.state, *sums]]


def assert_same(ones, others, **tolerance):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


def test_global_norm():
    draw = np.random.default_rng(0)
    values = [draw.normal(size=shape).astype(np.float32) for shape in ((3, 4), (70_000,), (2, 3, 4))]
    expected = np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in values))
    assert float(global_norm(tuple(map(Tensor, values)))) == pytest.approx(expected, rel=1e-6)


def test_the_loss_scale_changes_nothing_else():
    """A power of two only moves exponents: the results are equal bit for bit."""
    ids, plain, scaled = random_ids(2), Stepper(), Stepper()
    for number in range(2):
        assert plain.take(ids, number=number) == scaled.take(ids, scale=2.0 ** 20, number=number)
    assert_same(plain.state(), scaled.state(), rtol=0)


def test_overflow_leaves_everything_as_it_was():
    ids, stepper = random_ids(2), Stepper()
    before = stepper.state()
    [loss], norm, finite = stepper.take(ids, scale=3e38)
    assert np.isfinite(loss) and not np.isfinite(norm) and not finite
    assert_same(stepper.state(), before, rtol=0)
    assert stepper.take(ids)[2]
    assert any((one != other).any() for one, other in zip(stepper.state(), before, strict=True))


def test_overflow_in_a_micro_batch_does_not_reach_the_next_step():
    first, second = random_ids(2), random_ids(2, seed=1)
    stepper, fresh = Stepper(micro_batches=2), Stepper(micro_batches=2)
    before = stepper.state()
    assert not stepper.take(first, second, scale=3e38)[2]
    assert_same(stepper.state(), before, rtol=0)
    assert stepper.take(first, second) == fresh.take(first, second)


def test_clipping():
    """Adam's own scale hides a gradient's size; the first moment after one step shows it: (1 - beta1) * gradient."""
    ids, norms = random_ids(2), []
    for clip_norm in (0.0, 0.25, 1e6):
        stepper = Stepper(clip_norm)
        _, norm, _ = stepper.take(ids)
        moments = [moment.asnumpy().astype(np.float64) for moment in stepper.optimizer.first_moments]
        norms.append(np.sqrt(sum((moment ** 2).sum() for moment in moments)) / (1 - TRAINING.beta1))
    assert norm > 1
    assert norms == pytest.approx([norm, 0.25, norm], rel=1e-5)


def test_micro_batches_equal_one_batch():
    """With equally many counted tokens, the mean of the means is the mean."""
    ids = random_ids(5)[:4]  # without the row that ends in pads
    whole, parts = Stepper(), Stepper(micro_batches=2)
    for number in range(2):
        [loss], norm, _ = whole.take(ids, number=number)
        losses, parts_norm, _ = parts.take(ids[:2], ids[2:], number=number)
        assert np.mean(losses) == pytest.approx(loss, rel=1e-6) and parts_norm == pytest.approx(norm, rel=1e-5)
    weights = len(list(whole.model.get_parameters()))
    names = [p.name for p in whole.model.get_parameters()]
    for name, one, other in zip(names, whole.state()[:weights], parts.state()[:weights], strict=True):
        if not name.endswith("dense2.bias"):  # true gradient 0: Adam scales rounding noise up
            np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)
    assert all((total == 0).all() for total in parts.state()[-weights:])


def test_recompute_gives_the_same_steps():
    ids, plain, saving = random_ids(2), Stepper(dropout_rate=0.1), Stepper(recompute=True, dropout_rate=0.1)
    for number in range(2):
        [loss], norm, _ = plain.take(ids, number=number)
        [other_loss], other_norm, _ = saving.take(ids, number=number)
        assert (other_loss, other_norm) == pytest.approx((loss, norm), rel=1e-5)


def test_loss_scale_doubles_after_a_clean_window_and_halves_on_overflow():
    config = TrainingConfig(loss_scale=8.0, loss_scale_window=3)
    scale, values = LossScale(8.0), []
    for finite in [True] * 4 + [False] + [True] * 3 + [False] * 6:
        scale.update(finite, config)
        values.append(scale.value)
    assert values == [8, 8, 16, 16, 8, 8, 8, 16, 8, 4, 2, 1, 1, 1]
    fixed = LossScale(8.0)
    fixed.update(False, TrainingConfig(loss_scale=8.0, dynamic_loss_scale=False))
    assert fixed == LossScale(8.0)
