"""Checkpoints are opened with the weights, the vocabulary and the settings that they should have."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from src.checkpoint import store
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.inference.mindspore.load import load_model, open_checkpoint, open_run
from src.inference.score_request import Request
from src.pangu_alpha_config import RunConfig
from tests.support.programs import TINY, random_model

CONFIG = replace(TINY, num_layers=3)


@pytest.fixture(scope="module")
def model_and_weights():
    return random_model(seed=7, num_layers=3)


@pytest.fixture(scope="module")
def run(model_and_weights, tmp_path_factory):
    """The output folder of a run on two ranks. Its machine settings must not matter later."""
    folder = tmp_path_factory.mktemp("run")
    ms.save_checkpoint(model_and_weights[0], str(folder / "model.ckpt"))
    groups = DataConfig(tokenizer_path="own"), TrainingConfig(), ParallelConfig(data=2, cpu_kernels=False)
    RunConfig(CONFIG, *groups, GenerationConfig(end_token=7, use_past=False)).save(folder / "config.yaml")
    return folder


def test_weights_come_from_a_file(model_and_weights, tmp_path):
    model, weights = model_and_weights
    file = tmp_path / "model.ckpt"
    ms.save_checkpoint(model, str(file))
    loaded = load_model(CONFIG, file)
    for parameter in loaded.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), weights[parameter.name])
    with pytest.raises(InputError, match="has no parameter 'backbone.blocks.2"):
        load_model(replace(CONFIG, num_layers=4), file)
    assert store.find(tmp_path) == file
    assert {p.name for p in load_model(CONFIG, None).get_parameters()} == set(weights)


def test_a_run_is_opened_with_its_settings(run, model_and_weights):
    opened = open_run(run)
    assert opened.config.model == CONFIG and opened.config.generation == GenerationConfig(end_token=7)
    assert opened.mesh.plan.world_size == 1 and not opened.cpu_kernels
    assert opened.config.data.tokenizer_path == "own"
    assert open_run(run, "another").config.data.tokenizer_path == "another"
    for parameter in opened.model.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), model_and_weights[1][parameter.name])


def test_model_runtime_and_scorer_are_of_one_model(run):
    opened = open_run(run)
    assert opened.model is opened.model is opened.runtime.model
    tokens = [3, 1, 4, 1, 5]
    [(_, [log_probs])] = opened.scorer().score([[Request(tokens)]])
    [(_, [with_margins])] = opened.scorer(batch_size=1, margins=True).score([[Request(tokens)]])
    np.testing.assert_allclose(log_probs, with_margins[0], rtol=1e-5)


def test_a_bad_vocabulary_is_reported_before_weights_are_read(run, tmp_path):
    opened = open_run(run, tmp_path / "none")
    with pytest.raises(InputError, match="no vocabulary"):
        opened.tokenizer  # noqa: B018
    assert "runtime" not in vars(opened)


def test_a_checkpoint_without_settings_is_refused(model_and_weights, tmp_path):
    ms.save_checkpoint(model_and_weights[0], str(tmp_path / "model.ckpt"))
    with pytest.raises(InputError, match="no config.yaml beside it"):
        open_run(tmp_path)


def test_a_plan_of_more_ranks_than_processes_is_refused():
    groups = DataConfig(), TrainingConfig(), ParallelConfig(tensor=2), GenerationConfig()
    with pytest.raises(InputError, match="2 ranks .* but this is one process"):
        open_checkpoint(RunConfig(CONFIG, *groups), None)
