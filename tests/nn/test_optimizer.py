"""Compare the updates with their published formulas in float64 NumPy."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from src.common.settings import TrainingConfig
from src.nn.optimizer import Optimizer, StepScalars, is_decayed, learning_rate, sum_of_squares

STEPS = 6
SHAPES = {
    "blocks.0.dense1.weight": (5, 7),
    "blocks.0.dense1.bias": (7,),
    "layernorm.gamma": (6,),
    "layernorm.beta": (6,),
    "embedding_table": (9, 4),
    "still.weight": (3, 3),
}


def settings(optimizer):
    return TrainingConfig(
        optimizer=optimizer,
        learning_rate=0.02,
        end_learning_rate=0.002,
        warmup_steps=2,
        steps=8,
        beta1=0.8,
        beta2=0.9,
        epsilon=1e-3,
        weight_decay=0.3,
    )


def draw_problem(seed=0):
    """Return initial values and the gradients of all steps. The weight `still` is 0, and so is its gradient."""
    draw = np.random.default_rng(seed)
    values = {name: draw.normal(0, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    gradients = [
        {name: draw.normal(0, 10.0 ** draw.integers(-3, 1), shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    for step in gradients:
        step["still.weight"][:] = 0
    values["still.weight"][:] = 0
    return values, gradients


def decay_of(name, config):
    return 0.0 if "bias" in name or "layernorm" in name else config.weight_decay


def adam_weight_decay(value, state, gradient, rate, decay, config):
    state["m"] = config.beta1 * state["m"] + (1 - config.beta1) * gradient
    state["v"] = config.beta2 * state["v"] + (1 - config.beta2) * gradient**2
    return value - rate * (state["m"] / (np.sqrt(state["v"]) + config.epsilon) + decay * value)


def adam_direction(state, gradient, config):
    state["t"] += 1
    state["m"] = config.beta1 * state["m"] + (1 - config.beta1) * gradient
    state["v"] = config.beta2 * state["v"] + (1 - config.beta2) * gradient**2
    m_hat = state["m"] / (1 - config.beta1 ** state["t"])
    v_hat = state["v"] / (1 - config.beta2 ** state["t"])
    return m_hat / (np.sqrt(v_hat) + config.epsilon)


def adamw(value, state, gradient, rate, decay, config):
    """Follow the documentation of torch.optim.AdamW: decay first, then Adam."""
    value = value - rate * decay * value
    return value - rate * adam_direction(state, gradient, config)


def lamb(value, state, gradient, rate, decay, config):
    """Follow algorithm 2 of arXiv 1904.00962, with the identity for phi."""
    change = adam_direction(state, gradient, config) + decay * value
    norms = np.linalg.norm(value), np.linalg.norm(change)
    return value - rate * (norms[0] / norms[1] if min(norms) > 0 else 1.0) * change


SPECIFICATIONS = {"adam_weight_decay": adam_weight_decay, "adamw": adamw, "lamb": lamb}


def specified(config, values, gradients, factor):
    update = SPECIFICATIONS[config.optimizer]
    result = {}
    for name, value in values.items():
        value, state = value.astype(np.float64), {"m": 0.0, "v": 0.0, "t": 0}
        for step, gradient in enumerate(gradients):
            value = update(
                value,
                state,
                gradient[name].astype(np.float64) * factor,
                learning_rate(config, step),
                decay_of(name, config),
                config,
            )
        result[name] = value
    return result


def computed(config, values, gradients, factor, dtype=ms.float32):
    parameters = [Parameter(Tensor(value, dtype), name=name) for name, value in values.items()]
    optimizer = Optimizer(config, parameters)
    for step, gradient in enumerate(gradients):
        tensors = tuple(Tensor(gradient[name]) for name in values)
        optimizer(tensors, Tensor(np.float32(factor)), *StepScalars.at(config, step, step).tensors())
    return {p.name: p.asnumpy() for p in parameters}


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_updates_are_the_published_ones(name):
    config = settings(name)
    values, gradients = draw_problem()
    expected = specified(config, values, gradients, 0.5)
    for key, value in computed(config, values, gradients, 0.5).items():
        np.testing.assert_allclose(value, expected[key], rtol=2e-5, atol=2e-6, err_msg=key)
        assert (key == "still.weight") == (value == values[key]).all()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "adamw")) for name in SPECIFICATIONS]
)
def test_half_precision_parameters_keep_float32_moments(name):
    config = settings(name)
    values, gradients = draw_problem(1)
    values = {key: value.astype(np.float16) for key, value in values.items()}
    expected = specified(config, values, gradients, 1.0)
    for key, value in computed(config, values, gradients, 1.0, ms.float16).items():
        assert value.dtype == np.float16
        np.testing.assert_allclose(value, expected[key], atol=2e-3 * STEPS, err_msg=key)  # each step rounds to float16
    optimizer = Optimizer(config, [Parameter(Tensor(value, ms.float16), name=key) for key, value in values.items()])
    assert {moment.dtype for moment in optimizer.state} == {ms.float32}


def test_moments_have_the_release_s_names():
    optimizer = Optimizer(settings("lamb"), [Parameter(Tensor(np.ones(2, np.float32)), name="a.weight")])
    assert [moment.name for moment in optimizer.state] == ["adam_m.a.weight", "adam_v.a.weight"]


def test_decay_groups():
    decayed = [
        "backbone.blocks.0.attention.dense1.weight",
        "backbone.embedding.word_embedding.embedding_table",
        "backbone.top_query_embedding.embedding_table",
        "backbone.blocks.0.output.mapping.weight",
    ]
    plain = ["backbone.layernorm.gamma", "backbone.blocks.0.layernorm1.beta", "backbone.blocks.1.output.mapping.bias"]
    assert [name for name in decayed + plain if is_decayed(name)] == decayed


def test_schedule():
    config = TrainingConfig(learning_rate=1e-3, end_learning_rate=1e-5, warmup_steps=10, steps=50, decay_steps=110)
    rates = [learning_rate(config, step) for step in range(200)]
    np.testing.assert_allclose(rates[:10], 1e-4 * np.arange(1, 11))
    assert rates[10] == 1e-3 and rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[35] == pytest.approx(1e-5 + 0.99e-3 * (1 + math.cos(math.pi / 4)) / 2)
    np.testing.assert_allclose(rates[110:], 1e-5)
    assert all(later < earlier for earlier, later in zip(rates[10:110], rates[11:111], strict=True))
    assert learning_rate(TrainingConfig(warmup_steps=0, learning_rate=1e-3), 0) == 1e-3


def test_bias_correction_counts_the_steps_that_were_applied():
    plain = StepScalars.at(settings("adam_weight_decay"), 5, 3)
    assert (plain.beta1_power, plain.beta2_power) == (0, 0)
    corrected = StepScalars.at(settings("adamw"), 5, 3)
    assert (corrected.beta1_power, corrected.beta2_power) == (0.8**4, 0.9**4)
    assert corrected.learning_rate == plain.learning_rate == learning_rate(settings("adamw"), 5)


@pytest.mark.parametrize("shape", [(), (5,), (3, 70_000), (2, 3, 4)])
def test_sum_of_squares(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = float((values.astype(np.float64) ** 2).sum())
    assert float(sum_of_squares(Tensor(values))) == pytest.approx(expected, rel=1e-6)
