"""Models with experts: parameters, logits, generation, training and settings."""

from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor

from src.common.cli import parse
from src.common.errors import InputError
from src.common.settings import GenerationConfig, TrainingConfig
from src.cpu_kernels.attach import attach_to_training
from src.dataset import causal, eod_reset
from src.inference.loop import generate_tokens
from src.inference.mindspore.load import build_runtime
from src.nn.optimizer import Optimizer, StepScalars, is_decayed
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import RunConfig
from src.pangu_alpha_wrapcell import ApplyGradients, Objective, Stepper
from src.parallel.plan.sharding import parameter_shapes
from src.parallel.recompute import recompute_layers
from tests.support import numpy_pangu
from tests.support.programs import TINY, random_ids, random_model, random_weights

EXPERTS = dict(num_experts=4, expert_interval=1, expert_top_k=2, capacity_factor=0.5)


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_parameters_are_named_and_counted(interval):
    config = replace(
        TINY,
        num_experts=3,
        expert_interval=interval,
        ffn_hidden_size=40,
        depth_scaled_init=True,
        initializer_range=0.05,
    )
    model = PanguAlphaModel(config)
    shapes = {parameter.name: parameter.shape for parameter in model.get_parameters()}
    assert list(shapes.items()) == list(parameter_shapes(config).items())
    assert sum(parameter.size for parameter in model.get_parameters()) == config.num_parameters
    experts = [parameter for parameter in model.get_parameters() if ".ffn." in parameter.name]
    assert len(experts) == 4 * (config.num_layers // interval)
    for parameter in experts:
        assert is_decayed(parameter.name) == parameter.name.endswith("weight")
        scale = {"mapping.weight": 0.05, "projection.weight": 0.05 / np.sqrt(2 * config.num_layers)}
        expected = scale.get(parameter.name.split("ffn.")[1], 0)
        assert parameter.asnumpy().std() == pytest.approx(expected, rel=0.1)


def test_logits_and_loss_of_a_model_are_the_specification_s():
    model, weights = random_model(seed=5, **EXPERTS)
    config = model.config
    ids = random_ids(2, config)
    position_ids, mask = eod_reset(ids, config.eod_token)
    batch = [Tensor(ids), Tensor(position_ids), Tensor(mask)]
    logits = model(Tensor(ids[:, :-1]), *batch[1:]).asnumpy()
    expected, balance = numpy_pangu.forward(weights, config, ids[:, :-1], position_ids, mask)
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()
    negative_log_likelihood = numpy_pangu.loss(expected, ids, config.pad_token)
    for factor in (0.0, 0.5):
        network = PanguAlphaWithLoss(replace(config, balance_loss_factor=factor), model)
        objective, loss = Objective(network)(Tensor(2.0), *batch)
        assert float(network(*batch)) == float(loss) == pytest.approx(negative_log_likelihood, rel=1e-5)
        assert float(objective) == pytest.approx(2 * (negative_log_likelihood + factor * balance), rel=1e-5)


def test_a_model_without_experts_has_no_balance():
    model, _ = random_model(num_layers=2)
    ids = Tensor(random_ids(1)[:, :-1])
    _, balance = model.backbone(ids, *map(Tensor, causal(random_ids(1))))
    assert balance == 0.0 and isinstance(balance, float)


@pytest.mark.parametrize("settings", [{}, dict(use_past=False), dict(cpu_kernels=True)], ids=str)
def test_generation_drops_no_token(settings):
    """Tokens agree with a specification that drops nothing, for a padded prompt and one without padding."""
    model, weights = random_model(seed=5, **EXPERTS)
    prompts = [np.random.default_rng(length).integers(10, 50, length).tolist() for length in (3, 9)]
    new_tokens = 8
    generated = generate_tokens(
        build_runtime(model, **settings),
        prompts,
        GenerationConfig(max_new_tokens=new_tokens, end_token=9),
        model.config.pad_token,
    )
    for prompt, [answer] in zip(prompts, generated, strict=True):
        text, places = np.array([prompt + answer.tokens]), np.arange(len(prompt) + new_tokens)
        inputs = text, places[None], np.tril(np.ones((1, len(places), len(places))))
        expected, dropping = (
            numpy_pangu.logits(weights, model.config, *inputs, drop_tokens)[0, len(prompt) - 1 : -1]
            for drop_tokens in (False, True)
        )
        assert answer.tokens == expected.argmax(-1).tolist() != dropping.argmax(-1).tolist()


@pytest.mark.parametrize("top_k", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_model_learns(top_k):
    """The loss falls, all experts and routers change, and kernels and recomputation give the same losses."""
    config = replace(TINY, num_layers=2, num_experts=4, expert_interval=1, expert_top_k=top_k, initializer_range=0.1)
    training = TrainingConfig(learning_rate=5e-3, end_learning_rate=5e-3, warmup_steps=0, steps=8)
    ids = random_ids(2, config)
    batch = [Tensor(value) for value in (ids, *eod_reset(ids, config.eod_token))]
    curves = []
    for kind in ("plain", "kernels", "recompute"):
        model = PanguAlphaModel(config)
        before = random_weights(model, std=0.1)
        if kind == "recompute":
            recompute_layers(model, "full")
        network, parameters = PanguAlphaWithLoss(config, model), model.trainable_params()
        apply_gradients = ApplyGradients(Optimizer(training, parameters), clip_norm=1.0)
        if kind == "kernels":
            attach_to_training(network, apply_gradients)
        stepper = Stepper(network, parameters, apply_gradients)
        curves.append(
            [
                stepper.train(1.0, StepScalars.at(training, number, number), [batch]).loss
                for number in range(training.steps)
            ]
        )
    assert curves[0][-1] < 0.8 * curves[0][0]
    np.testing.assert_allclose(curves[1:], curves[:1] * 2, rtol=1e-5)
    for parameter in model.trainable_params():
        moved = (parameter.asnumpy() != before[parameter.name]).reshape(parameter.shape[0], -1).any(-1)
        assert moved.all() or "output." not in parameter.name, parameter.name


def test_the_60b_of_the_modelzoo():
    model = parse(RunConfig, "train.py", ["--mode", "60B-moe"]).model
    dense = parse(RunConfig, "train.py", ["--mode", "2.6B"]).model
    assert replace(model, num_experts=0, expert_interval=2) == dense
    assert sum(np.prod(shape) for shape in parameter_shapes(model).values()) == model.num_parameters == 61_362_836_480


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_experts=-1), "model.num_experts is -1; it must not be negative"),
        (dict(num_experts=1, expert_top_k=2), "model.expert_top_k 2 is more than model.num_experts 1"),
        (dict(num_experts=4, expert_top_k=3), "model.expert_top_k is 3; it must be 1 or 2"),
        (dict(num_experts=2, expert_interval=0), "model.expert_interval is 0; it must lie in 1 to 3"),
        (dict(num_experts=2, expert_interval=4), "model.expert_interval is 4; it must lie in 1 to 3"),
        (dict(num_experts=2, capacity_factor=0.0), "model.capacity_factor is 0.0; it must be positive"),
        (dict(num_experts=2, balance_loss_factor=-0.1), "model.balance_loss_factor is -0.1; it must not be negative"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        replace(TINY, **changes)
