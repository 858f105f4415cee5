"""A loss by chunks of rows is the loss."""

import pytest

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_config import RunConfig
from src.parallel.chunked_loss import chunk_loss
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.strategies import annotate
from tests.test_pangu_alpha import CONFIG, assert_loss_and_gradients_are_the_peer_s, golden_batch, golden_model  # noqa: F401


@pytest.mark.parametrize("is_annotated", [False, True])
def test_loss_and_gradients_are_the_peer_s(golden_model, golden_batch, is_annotated):  # noqa: F811
    network = PanguAlphaWithLoss(CONFIG, golden_model)
    if is_annotated:
        annotate(network, Plan(num_layers=CONFIG.num_layers))
    chunk_loss(network, 4)
    assert_loss_and_gradients_are_the_peer_s(network, golden_batch)


@pytest.mark.parametrize(
    "batch_size, parallel, chunks",
    [
        (8, dict(device_target="CPU"), 1),
        (8, dict(device_target="Ascend"), 4),
        (6, dict(device_target="Ascend"), 3),
        (5, dict(device_target="Ascend"), 1),
        (8, dict(device_target="Ascend", tensor=2, micro_batch_interleaved=4), 2),
        (8, dict(device_target="Ascend", tensor=2, backend="explicit"), 1),
        (8, dict(device_target="Ascend", tensor=2, micro_batch_num=2), 1),
        (8, dict(device_target="Ascend", micro_batch_num=2), 4),  # one device calls each micro-batch from the host
    ],
    ids=str,
)
def test_chunks_divide_the_rows(batch_size, parallel, chunks):
    config = RunConfig(
        CONFIG, DataConfig(), TrainingConfig(batch_size=batch_size), ParallelConfig(**parallel), GenerationConfig()
    )
    assert config.loss_chunks == chunks
