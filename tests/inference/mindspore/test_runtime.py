"""The KV cache against recomputation, and both against a float64 model. Ascend's operators are emulated on a CPU."""

from dataclasses import replace

import numpy as np
import pytest

from src.common.settings import GenerationConfig
from src.inference.loop import generate_tokens
from src.inference.mindspore.load import build_runtime
from src.inference.mindspore.runtime import CachedRuntime, RecomputeRuntime
from src.inference.padding import bucket
from tests.support import numpy_pangu
from tests.support.ascend_operators import emulate
from tests.support.programs import TINY, random_model

CHANGES = dict(seq_length=96, num_layers=3)
CONFIG = replace(TINY, **CHANGES)
LENGTHS = (3, 17, 1, 30)


@pytest.fixture(scope="module")
def model_and_weights():
    return random_model(seed=7, **CHANGES)


@pytest.fixture(scope="module")
def runtimes(model_and_weights):
    """Both runtimes. They are shared, because each compiles its graphs once."""
    model, _ = model_and_weights
    return build_runtime(model), build_runtime(model, use_past=False)


@pytest.fixture(scope="module")
def flash():
    """The runtime of an Ascend device, with the same weights."""
    with pytest.MonkeyPatch.context() as patch:
        emulate(patch.setattr)
        yield build_runtime(random_model(seed=7, **CHANGES)[0], flash=True)


def prompts(lengths=LENGTHS, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(10, CONFIG.vocab_size, length).tolist() for length in lengths]


def generate(runtime, texts, **settings):
    config = GenerationConfig(**dict(max_new_tokens=64, end_token=9) | settings)
    return [
        [(answer.tokens, answer.finish_reason) for answer in group]
        for group in generate_tokens(runtime, texts, config, CONFIG.pad_token)
    ]


def test_kinds(runtimes):
    assert [type(runtime) for runtime in runtimes] == [CachedRuntime, RecomputeRuntime]


def test_buckets_are_powers_of_two_within_the_table():
    assert [bucket(length, 96) for length in (1, 16, 17, 32, 33, 64, 65, 96)] == [16, 16, 32, 32, 64, 64, 96, 96]
    assert bucket(5, 8) == 8


def test_logits_are_the_specification_s(model_and_weights, runtimes, flash):
    """Two prompts of different lengths and five tokens after each, against a float64 model without padding."""
    _, weights = model_and_weights
    texts = prompts((4, 20))
    ids, lengths = np.full((2, 20), CONFIG.pad_token, np.int32), np.array([4, 20], np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    for runtime in (*runtimes, flash):
        grown = [list(text) for text in texts]
        logits = runtime.prefill(ids, lengths, 40)
        for step in range(6):
            for row, text in enumerate(grown):
                size = len(text)
                expected = numpy_pangu.logits(
                    weights, CONFIG, np.array([text]), np.arange(size)[None], np.tril(np.ones((1, size, size)))
                )[0, -1]
                assert np.abs(logits[row] - expected).max() < 1e-4
                text.append(int(expected.argmin()))
            logits = runtime.decode(np.array([text[-1] for text in grown], np.int32), lengths + step)


def test_greedy_tokens_are_the_same_with_and_without_the_cache(runtimes, flash):
    cached, recomputed, by_flash = (
        generate(runtime, prompts(), repetition_penalty=1.3) for runtime in (*runtimes, flash)
    )
    assert cached == recomputed == by_flash
    assert max(len(tokens) for [(tokens, _)] in cached) == 64
    assert len({token for [(tokens, _)] in cached for token in tokens}) > 10


def test_a_batch_answers_as_its_prompts_would_alone(runtimes):
    whole = generate(runtimes[0], prompts())
    assert whole[1:2] == generate(runtimes[0], prompts()[1:2])


def test_samples_are_the_same_with_and_without_the_cache(runtimes):
    settings = dict(method="sample", top_k=20, top_p=0.9, temperature=1.5, seed=3, num_samples=2, max_new_tokens=24)
    cached, recomputed = (generate(runtime, prompts(LENGTHS[:2]), **settings) for runtime in runtimes)
    assert cached == recomputed
    assert cached != generate(runtimes[0], prompts(LENGTHS[:2]), **settings | {"seed": 4})


def test_beams_are_the_same_with_and_without_the_cache(runtimes, flash):
    settings = dict(method="beam", num_beams=2, num_samples=2, max_new_tokens=24)
    cached, recomputed, by_flash = (
        generate(runtime, prompts(LENGTHS[:2]), **settings) for runtime in (*runtimes, flash)
    )
    assert cached == recomputed == by_flash


def test_reorder_moves_the_cached_rows(runtimes):
    cached, recomputed = runtimes
    lengths, rows = np.array([5, 9, 2, 7], np.int32), np.array([2, 2, 0, 3])
    ids = np.random.default_rng(1).integers(10, 50, (4, 9)).astype(np.int32)
    next_ids = np.array([11, 12, 13, 14], np.int32)
    answers = []
    for runtime in runtimes:
        runtime.prefill(ids, lengths, 20)
        runtime.reorder(rows)
        answers.append(runtime.decode(next_ids, lengths[rows]))
    np.testing.assert_allclose(*answers, atol=1e-4)
    cached.prefill(ids, lengths, 20)
    assert np.abs(cached.decode(next_ids, lengths) - answers[0]).max(1)[[0, 1, 2]].min() > 0.1


def test_a_text_joins_while_others_continue(model_and_weights, runtimes, flash):
    """It takes the middle row, which was idle so far. The logits are those of a float64 model without a cache."""
    _, weights = model_and_weights
    texts = prompts((5, 12, 3))
    for runtime in (runtimes[0], flash):
        grown = [list(text) for text in texts]
        runtime.open(3, 40)
        runtime.join(padded(texts[::2], 5), np.array([5, 3]), np.array([0, 2]))
        for number in (0, 2):
            grown[number].append(11 + number)
        runtime.decode(np.array([11, 13], np.int32), np.array([5, 3]), np.array([0, 2]))
        runtime.join(padded(texts[1:2], 12), np.array([12]), np.array([1]))
        for number in range(3):
            grown[number].append(21 + number)
        logits = runtime.decode(np.array([21, 22, 23], np.int32), np.array([6, 12, 4]))
        for row, text in enumerate(grown):
            size = len(text)
            expected = numpy_pangu.logits(
                weights, CONFIG, np.array([text]), np.arange(size)[None], np.tril(np.ones((1, size, size)))
            )[0, -1]
            assert np.abs(logits[row] - expected).max() < 1e-4


def padded(texts, length):
    return np.array([text + [CONFIG.pad_token] * (length - len(text)) for text in texts], np.int32)


def test_the_end_of_the_position_table_is_reached_by_both(runtimes):
    texts = prompts((90, 92, 88, 95))
    cached, recomputed = (generate(runtime, texts, end_token=0) for runtime in runtimes)
    assert cached == recomputed
    assert [len(tokens) for [(tokens, reason)] in cached if reason == "length"] == [6, 4, 8, 1]
