"""A layer with experts against a token-by-token specification in float64, and against cases computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops

from src.nn.dropout import dropout_keys
from src.nn.moe import MixtureOfExperts, Router
from src.pangu_alpha import FeedForward
from src.pangu_alpha_config import PanguAlphaConfig
from tests.support import numpy_pangu
from tests.support.programs import random_weights

BATCH, TOKENS = 3, 12
LAYER = PanguAlphaConfig(
    vocab_size=10,
    hidden_size=6,
    num_layers=2,
    num_heads=2,
    seq_length=TOKENS,
    ffn_hidden_size=5,
    dropout_rate=0.0,
    num_experts=4,
    capacity_factor=1.0,
)
CASES = [
    dict(),
    dict(expert_top_k=2),
    dict(capacity_factor=0.1),  # one token for each expert
    dict(expert_top_k=2, capacity_factor=0.4, num_experts=3, hidden_act="gelu"),
    dict(expert_top_k=2, num_experts=2, capacity_factor=0.9),
    dict(num_experts=5, capacity_factor=100.0),  # no token is dropped
    dict(num_experts=1),
]


def inputs(config, seed=0):
    """Return x (B, S, H) for which the router chooses experts unevenly."""
    draw = np.random.default_rng(seed)
    return draw.normal(draw.normal(size=config.hidden_size), 1.0, (BATCH, TOKENS, config.hidden_size)).astype(
        np.float32
    )


def random_layer(config, seed=0, std=0.5):
    layer = MixtureOfExperts(config, config.initializer_range)
    return layer, random_weights(layer, seed, std)


def in_float64(weights):
    return {name: value.astype(np.float64) for name, value in weights.items()}


def computed(layer, x, **settings):
    """Return the output (B, S, H) and the load-balancing loss of a layer."""
    output, balance = layer(Tensor(x.reshape(-1, x.shape[-1])), len(x), **settings)
    return output.asnumpy().reshape(x.shape), float(balance)


class Weighed(nn.Cell):
    """A scalar that depends on every output and on the load-balancing loss."""

    def __init__(self, layer, factors):
        super().__init__(auto_prefix=False)
        self.layer, self.factors = layer, Tensor(factors)

    def construct(self, x):
        output, balance = self.layer(x, BATCH)
        return ops.reduce_sum(output * self.factors) + 3.0 * balance


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_output_and_balance_are_the_specification_s(changes):
    config = replace(LAYER, **changes)
    layer, weights = random_layer(config)
    x = inputs(config)
    for drop_tokens in (True, False):
        output, balance = computed(layer, x, drop_tokens=drop_tokens)
        expected, expected_balance = numpy_pangu.moe(in_float64(weights), x.astype(np.float64), config, drop_tokens)
        assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()
        assert balance == pytest.approx(expected_balance, rel=1e-5)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_places_are_the_specification_s(changes):
    config = replace(LAYER, **changes)
    router = Router(config)
    weight = random_weights(router, std=0.5)["dense.weight"].astype(np.float64)
    x, experts = inputs(config), config.num_experts
    capacity = min(TOKENS, int(np.ceil(config.capacity_factor * TOKENS * config.expert_top_k / experts)))
    dispatch, combine, _ = router(Tensor(x.reshape(-1, x.shape[-1])), BATCH, capacity)
    expected = np.zeros((BATCH, TOKENS, experts, capacity))
    for row, tokens in enumerate(x.astype(np.float64)):
        for token, routes in enumerate(numpy_pangu.route(numpy_pangu.softmax(tokens @ weight), config)):
            for expert, place, share in routes:
                expected[row, token, expert, place] = share
    expected = expected.reshape(BATCH, TOKENS, -1)
    np.testing.assert_array_equal(dispatch.asnumpy(), expected > 0)
    np.testing.assert_allclose(combine.asnumpy(), expected, rtol=1e-5)
    dropped = BATCH * TOKENS * config.expert_top_k - (expected > 0).sum()
    assert (dropped == 0) == (config.capacity_factor == 100 or experts == 1)


def choose(config, logits, capacity):
    """Return {token: {(expert, slot): weight}} and the load-balancing loss of a router with these logits (S, E)."""
    experts = config.num_experts
    router = Router(replace(config, hidden_size=experts, num_heads=1))
    router.dense.weight.set_data(Tensor(np.eye(experts, dtype=np.float32)))
    dispatch, combine, balance = router(Tensor(np.array(logits, np.float32)), 1, capacity)
    taken = {
        token: {
            (int(slot) // capacity, int(slot) % capacity): round(float(row[slot]), 4)
            for slot in np.flatnonzero(dispatch.asnumpy()[0, token])
        }
        for token, row in enumerate(combine.asnumpy()[0])
    }
    return taken, float(balance)


def test_places_by_hand():
    """Two experts have probabilities 3/4 and 1/4. Three tokens choose the first one, which has two slots."""
    high = float(np.log(3))
    taken, balance = choose(replace(LAYER, num_experts=2), [[high, 0], [0, high], [high, 0], [high, 0]], 2)
    assert taken == {0: {(0, 0): 0.75}, 1: {(1, 0): 0.75}, 2: {(0, 1): 0.75}, 3: {}}
    assert balance == pytest.approx(2 * (0.75 * 0.625 + 0.25 * 0.375), rel=1e-5)


def test_first_choices_of_later_tokens_go_before_second_ones():
    """The probabilities have the ratio 3 : 2 : 1. The second choice of token 0 is the first choice of token 1."""
    three, two = float(np.log(3)), float(np.log(2))
    config = replace(LAYER, num_experts=3, expert_top_k=2)
    logits = [[three, two, 0], [0, three, two], [two, three, 0]]
    assert choose(config, logits, 1)[0] == {0: {(0, 0): 0.6}, 1: {(1, 0): 0.6, (2, 0): 0.4}, 2: {}}
    assert choose(config, logits, 2)[0] == {
        0: {(0, 0): 0.6},
        1: {(1, 0): 0.6, (2, 0): 0.4},
        2: {(1, 1): 0.6, (0, 1): 0.4},
    }


def test_even_routing_has_a_balance_of_one():
    taken, balance = choose(replace(LAYER, num_experts=4), np.eye(4) * 1e-4, 1)
    assert [list(places) for places in taken.values()] == [[(expert, 0)] for expert in range(4)]
    assert balance == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("changes", [dict(capacity_factor=0.7), dict(capacity_factor=0.6, expert_top_k=2)], ids=str)
def test_gradients_are_finite_differences(changes):
    """The gradients of x and of every weight agree with central differences of the specification."""
    config = replace(LAYER, num_experts=3, hidden_size=4, num_heads=1, **changes)
    layer, weights = random_layer(config, seed=1)
    x = inputs(config, seed=1)
    factors = np.random.default_rng(2).normal(size=(BATCH * TOKENS, config.hidden_size)).astype(np.float32)
    parameters = ParameterTuple(layer.trainable_params())
    gradient = ops.GradOperation(get_all=True, get_by_list=True)(Weighed(layer, factors), parameters)
    [of_x], of_weights = gradient(Tensor(x.reshape(-1, config.hidden_size)))
    values = in_float64(weights) | {"x": x.astype(np.float64)}
    gradients = dict(zip(weights, of_weights, strict=True)) | {"x": of_x}

    def objective():
        output, balance = numpy_pangu.moe(values, values["x"], config)
        return (output.reshape(factors.shape) * factors).sum() + 3.0 * balance

    for name, value in values.items():
        expected = np.zeros(value.size)
        flat = value.reshape(-1)
        for i, before in enumerate(flat.copy()):
            flat[i] = before + 1e-6
            above = objective()
            flat[i] = before - 1e-6
            expected[i] = (above - objective()) / 2e-6
            flat[i] = before
        error = np.abs(gradients[name].asnumpy().reshape(-1) - expected).max()
        assert np.abs(expected).max() > 0.1 and error < 1e-4 * np.abs(expected).max(), name


def test_routing_does_not_depend_on_other_rows():
    config = replace(LAYER, expert_top_k=2, capacity_factor=0.5)
    layer, _ = random_layer(config)
    x = inputs(config)
    together, balance = computed(layer, x)
    alone = [computed(layer, row[None]) for row in x]
    np.testing.assert_allclose(together, np.concatenate([output for output, _ in alone]), rtol=1e-5, atol=1e-6)
    assert balance == pytest.approx(np.mean([of_row for _, of_row in alone]), rel=1e-6)


def test_one_expert_is_a_dense_layer():
    config = replace(LAYER, num_experts=1)
    layer, weights = random_layer(config)
    dense = FeedForward(config, config.initializer_range)
    for parameter in dense.get_parameters():
        parameter.set_data(Tensor(weights[f"ffn.{parameter.name}"][0]))
    x = inputs(config)
    output, balance = computed(layer, x)
    expected = dense(Tensor(x.reshape(-1, config.hidden_size))).asnumpy().reshape(x.shape)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    assert balance == 1.0


def test_dropout_is_that_of_the_output():
    config = replace(LAYER, dropout_rate=0.5)
    layer, _ = random_layer(config)
    x = inputs(config)
    whole, _ = computed(layer, x, drop_tokens=False)
    dropped, _ = computed(layer, x, drop_tokens=False, dropout_key=Tensor(dropout_keys(0, 0, 0, BATCH)))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-5)
    assert 0.35 < kept.mean() < 0.65


def test_float16_routes_in_float32():
    config = replace(LAYER, compute_dtype="float16", param_init_dtype="float16", expert_top_k=2)
    layer, weights = random_layer(config)
    weights = {name: value.astype(np.float16) for name, value in weights.items()}
    x = inputs(config).astype(np.float16)
    output, balance = layer(Tensor(x.reshape(-1, config.hidden_size)), BATCH)
    expected, expected_balance = numpy_pangu.moe(in_float64(weights), x.astype(np.float64), config)
    assert output.asnumpy().dtype == np.float16 and balance.asnumpy().dtype == np.float32
    assert np.abs(output.asnumpy().reshape(x.shape) - expected).max() < 0.01 * np.abs(expected).max()
    assert float(balance) == pytest.approx(expected_balance, rel=1e-5)


class Selection(nn.Cell):
    """Product of a matrix of zeros and ones with x, along the first of the three axes of x."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = Tensor(matrix)

    def construct(self, x):
        rows, _ = self.matrix.shape
        return ops.reshape(ops.matmul(self.matrix, ops.reshape(x, (x.shape[0], -1))), (rows, -1, x.shape[2]))


@pytest.mark.parametrize(
    ("experts", "units"), [([[0, 2, 3], [1]], [range(5)]), ([range(4)], [range(3), [3, 4]])], ids=["experts", "units"]
)
def test_slices_of_the_experts_add_up(experts, units):
    """Layers that hold some of the experts, or some of their hidden units, add up to the whole layer."""
    layer, weights = random_layer(LAYER)
    x = inputs(LAYER)
    whole, balance = computed(layer, x)
    total = np.zeros_like(whole)
    for held in experts:
        for part in units:
            slices = {
                "ffn.mapping.weight": np.ix_(held, range(6), part),
                "ffn.mapping.bias": np.ix_(held, part),
                "ffn.projection.weight": np.ix_(held, part, range(6)),
                "ffn.projection.bias": held,
            }
            layer = MixtureOfExperts(LAYER, LAYER.initializer_range)
            for parameter in layer.get_parameters():
                value = weights[parameter.name][slices.get(parameter.name, ...)]
                added_by_another = parameter.name == "ffn.projection.bias" and part[0] > 0
                parameter.set_data(Tensor(value * (not added_by_another)), slice_shape=True)
            chosen = np.eye(4, dtype=np.float32)[held]
            layer.exchange_in, layer.exchange_out = Selection(chosen), Selection(np.ascontiguousarray(chosen.T))
            output, balance_of_part = computed(layer, x)
            assert balance_of_part == balance and np.abs(output - whole).max() > 0.1
            total += output
    np.testing.assert_allclose(total, whole, rtol=1e-5, atol=1e-5)
