"""Each function against a plain Python specification, and drawn frequencies against known probabilities."""

import math

import numpy as np
import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.inference.sampling import (
    Penalties,
    Summary,
    choose_tokens,
    draw,
    keep_top_k,
    keep_top_p,
    largest_entries,
    log_normalizer,
    row_generator,
)

LOGITS = [2.0, 1.5, 1.5, 0.3, -0.2, -1.0, -3.0]


def softmax(logits):
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


def by_likelihood(logits):
    """Return ids by descending logit; of equal ones the smaller id comes first."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def expected_probabilities(logits, config, prompt=(), answer=()):
    """Compute the distribution that the docstrings describe, one token at a time."""
    logits = list(map(float, logits))
    for token in set(prompt) | set(answer):
        factor = config.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(answer):
        logits[token] -= config.frequency_penalty * answer.count(token) + config.presence_penalty
    logits = [value / config.temperature for value in logits]
    kept = by_likelihood(logits)
    if config.top_k:
        kept = kept[: config.top_k]
    probabilities = softmax([logits[token] for token in kept])
    nucleus, total = [], 0.0
    for token, probability in zip(kept, probabilities, strict=True):
        nucleus.append(token)
        total += probability
        if total >= config.top_p:
            break
    result = [0.0] * len(logits)
    for token, probability in zip(nucleus, softmax([logits[token] for token in nucleus]), strict=True):
        result[token] = probability
    return np.array(result)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 2},
        {"top_k": 100},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"top_k": 4, "top_p": 0.8, "temperature": 1.3},
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.4},
        {"presence_penalty": 0.9},
        {
            "repetition_penalty": 1.2,
            "frequency_penalty": -0.3,
            "presence_penalty": 0.5,
            "temperature": 0.8,
            "top_k": 5,
            "top_p": 0.9,
        },
    ],
    ids=str,
)
def test_drawn_frequencies(settings):
    config = GenerationConfig(method="sample", **settings)
    prompt, answer, draws = [3, 5], [1, 1, 5, 0], 20000
    penalties = Penalties([prompt], len(LOGITS), config)
    for token in answer:
        penalties.count(np.array([token]), np.array([0]))
    logits = penalties.apply(np.array([LOGITS], np.float32), np.array([0]))
    tokens = choose_tokens(logits.repeat(draws, axis=0), config, [row_generator(1, 0, 0)] * draws)
    found = np.bincount(tokens, minlength=len(LOGITS))
    expected = draws * expected_probabilities(LOGITS, config, prompt, answer)
    possible = expected > 0
    assert found[~possible].sum() == 0
    chi_square = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = max(possible.sum() - 1, 1)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_draw_is_the_inverse_of_the_cumulated_distribution():
    steps = 5000
    uniforms = (np.arange(steps) + 0.5) / steps
    found = np.bincount(draw(np.array([LOGITS] * steps, np.float32), uniforms), minlength=len(LOGITS))
    np.testing.assert_allclose(found, steps * np.array(softmax(LOGITS)), atol=1.001)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_draw_never_gives_what_is_ruled_out(uniform):
    logits = np.array([[-np.inf, 1.0, -np.inf, 2.0, -np.inf]])
    assert draw(logits, np.array([uniform]))[0] == (1 if uniform == 0 else 3)


@pytest.mark.parametrize("p", [0.001, 0.3, 0.9, 0.999999])
@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0], ids="spread {}".format)
def test_top_p_over_a_large_vocabulary(p, spread):
    """Thousands of tokens may be needed to reach p, or tokens with equal logits."""
    logits = np.random.default_rng(0).normal(0, spread, (2, 6000))
    for row, kept in zip(logits, keep_top_p(logits, p), strict=True):
        order = by_likelihood(row)
        weights = np.exp(row[order])
        size = int((np.cumsum(weights) < p * weights.sum() * (1 - 1e-12)).sum()) + 1
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(kept)), sorted(order[:size]))
        np.testing.assert_array_equal(kept[order[:size]], row[order[:size]])


def test_top_p_keeps_the_token_that_crosses_p():
    logits = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert np.isfinite(keep_top_p(logits, 0.51)).tolist() == [[True, True, False]]
    assert np.isfinite(keep_top_p(logits, 0.49)).tolist() == [[True, False, False]]


def test_top_k_with_equal_logits():
    logits = np.random.default_rng(0).integers(0, 4, (5, 30)).astype(np.float32)
    for k in (1, 2, 7, 30):
        for row, kept in zip(logits, keep_top_k(logits, k), strict=True):
            assert np.flatnonzero(np.isfinite(kept)).tolist() == sorted(by_likelihood(row)[:k])


def test_penalties_follow_their_rows():
    config = GenerationConfig(presence_penalty=1.0, frequency_penalty=0.25, repetition_penalty=2.0)
    penalties = Penalties([[0], [1], [2]], 4, config)
    penalties.count(np.array([3, 3]), np.array([0, 2]))
    penalties.reorder(np.array([2, 2, 0]))
    penalties.count(np.array([3]), np.array([1]))
    logits = penalties.apply(np.full((3, 4), 4.0, np.float32), np.arange(3))
    np.testing.assert_allclose(logits, [[4, 4, 2, 0.75], [4, 4, 2, 0.5], [2, 4, 4, 0.75]])


def test_greedy_and_temperature_zero_take_the_likeliest():
    logits = np.array([LOGITS, LOGITS[::-1]], np.float32)
    for settings in ({"method": "greedy", "temperature": 5.0}, {"method": "sample", "temperature": 0}):
        config = GenerationConfig(**settings)
        assert choose_tokens(logits, config, []).tolist() == [0, 6]


@pytest.mark.parametrize("temperature", [1e-6, 1e-50, 5e-324])
def test_a_tiny_temperature_is_nearly_greedy(temperature):
    config = GenerationConfig(method="sample", temperature=temperature, top_k=3, top_p=0.9)
    assert choose_tokens(np.array([LOGITS], np.float32), config, [row_generator(0, 0, 0)]).tolist() == [0]


def test_arguments_are_left_as_they_were():
    logits = np.array([LOGITS], np.float32)
    logits.setflags(write=False)
    config = GenerationConfig(method="sample", temperature=0.7, top_k=3, top_p=0.9, repetition_penalty=1.3)
    penalised = Penalties([[1]], len(LOGITS), config).apply(logits, np.array([0]))
    penalised.setflags(write=False)
    choose_tokens(penalised, config, [row_generator(0, 0, 0)])


def test_row_generators_differ():
    firsts = {row_generator(*place).random() for place in np.ndindex(3, 3, 3)}
    assert len(firsts) == 27
    assert row_generator(2**32 * 5 + 1, 0, 0).random() != row_generator(1, 5, 0).random()


def test_log_normalizer():
    logits = np.array([LOGITS, [1000.0] * 7], np.float32)
    np.testing.assert_allclose(
        log_normalizer(logits), [math.log(sum(map(math.exp, LOGITS))), 1000 + math.log(7)], rtol=1e-6
    )
    logits[1, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        log_normalizer(logits)


def test_summary():
    logits = np.random.default_rng(0).normal(0, 5, (40, 700)).astype(np.float32)
    logits[7, [3, 90]] = 50  # the smallest id of equal logits
    likeliest, normalizers = Summary.of(logits)
    exact = logits.astype(np.float64)
    np.testing.assert_array_equal(likeliest, exact.argmax(axis=-1))
    np.testing.assert_allclose(normalizers, np.log(np.exp(exact).sum(axis=-1)), rtol=1e-6)
    part = Summary.of(logits).rows(5, 9)
    assert part.likeliest[2] == 3
    np.testing.assert_array_equal(part.normalizers, normalizers[5:9])


def test_largest_entries():
    scores = np.random.default_rng(0).permutation(12).reshape(3, 4)
    best = sorted(np.ndindex(3, 4), key=lambda place: -scores[place])
    assert largest_entries(scores, 5) == best[:5]
    assert largest_entries(scores, 50) == best
