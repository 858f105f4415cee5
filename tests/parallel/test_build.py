"""The parts that src.parallel.build makes of a model, in a run of one process."""

import numpy as np
import pytest

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.parallel.build import build_inference, build_training, connect_inference
from src.parallel.mesh import Mesh
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import parameter_shapes
from src.training.config import TrainConfig
from tests.support.programs import TINY


def values(parameters):
    return {parameter.name: parameter.asnumpy() for parameter in parameters}


@pytest.fixture(scope="module")
def training():
    settings = TrainingConfig(seed=3)
    config = TrainConfig(TINY, DataConfig(), settings, ParallelConfig(), GenerationConfig())
    return build_training(config, Mesh(Plan.of(config.parallel, config.model)))


def test_a_training_run_holds_every_parameter_and_its_moments(training):
    shapes = parameter_shapes(TINY)
    assert {one.name: tuple(one.shape) for one in training.parameters} == shapes
    moments = {f"{kind}.{name}": shape for kind in ("adam_m", "adam_v") for name, shape in shapes.items()}
    assert {one.name: tuple(one.shape) for one in training.optimizer.state} == moments
    for name, shape in (shapes | moments).items():
        assert training.holder.writes(name) and training.holder.box(name).shape == shape


def test_inference_has_the_values_of_its_seed_or_zeros(training):
    trained = values(training.parameters)
    model, holder = build_inference(TINY, seed=3)
    built = values(model.get_parameters())
    assert built.keys() == trained.keys() == holder.shapes.keys()
    assert all((built[name] == trained[name]).all() for name in trained)
    empty, _ = build_inference(TINY)
    assert not any(np.any(value) for value in values(empty.get_parameters()).values())


def test_one_process_has_nothing_to_connect():
    model, _ = build_inference(TINY)
    cells = [cell for _, cell in model.cells_and_names()]
    assert connect_inference(model, None) is None
    assert connect_inference(model, Mesh(Plan())) is None
    assert [cell for _, cell in model.cells_and_names()] == cells
