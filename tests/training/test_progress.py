from src.common.settings import TrainingConfig
from src.training.progress import LossScale


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
