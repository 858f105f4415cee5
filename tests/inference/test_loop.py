"""The token loop against brute force, on a toy model with logits that depend on the last two tokens of its cache."""

import math
from dataclasses import replace

import numpy as np
import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.inference.loop import generate_tokens, stream_tokens
from tests.support.toy_runtime import PAD, ToyRuntime, all_answers, assert_same, greedy_answer, random_prompts


@pytest.mark.parametrize("seed", range(5))
def test_greedy_equals_the_naive_loop(seed):
    runtime = ToyRuntime(12, seed=seed)
    prompts = random_prompts(12, [1, 2, 7, 4, 1], seed)
    config = GenerationConfig(max_new_tokens=20, end_token=3)
    for prompt, [completion] in zip(prompts, generate_tokens(runtime, prompts, config, PAD), strict=True):
        assert_same(completion, greedy_answer(runtime, prompt, 3, 20))


def test_repetition_penalty_sees_prompt_and_answer():
    runtime = ToyRuntime(10)
    runtime.table[..., 9] = -1000
    prompt, tokens = [4, 2], []
    for _ in range(15):
        logits = runtime.table[(prompt + tokens)[-2], (prompt + tokens)[-1]].copy()
        for token in set(prompt + tokens):
            logits[token] *= 0.25 if logits[token] > 0 else 4
        tokens.append(int(logits.argmax()))
    config = GenerationConfig(max_new_tokens=15, repetition_penalty=4.0)
    assert generate_tokens(runtime, [prompt], config, PAD)[0][0].tokens == tokens


def test_a_runtime_is_asked_for_nothing_useless():
    """No decode is useless, each answer token is read once and in order, and ended rows read nothing."""
    ended, runtime = set(), ToyRuntime(12, seed=1)
    prompts = random_prompts(12, [1, 5, 3, 9, 2, 6], seed=2)
    config = GenerationConfig(method="sample", max_new_tokens=12, end_token=3, num_samples=2)
    answers = sum(generate_tokens(runtime, prompts, config, PAD), [])
    assert runtime.prefilled_rows == 12 and runtime.capacity == 9 + 12
    drawn = [len(answer.tokens) + (answer.finish_reason == "end") for answer in answers]
    assert len(runtime.decoded) == max(drawn) - 1
    for row, answer in enumerate(answers):
        length = len(prompts[row // 2])
        ended.add(answer.finish_reason)
        for step, (ids, positions, rows) in enumerate(runtime.decoded):
            read = list(zip(ids[rows == row], positions[rows == row], strict=True))
            assert read == ([(answer.tokens[step], length + step)] if step < drawn[row] - 1 else [])
    assert ended == {"end", "length"}


def test_answers_end_at_the_model_s_seq_length():
    runtime = ToyRuntime(8, seq_length=10)
    prompts = random_prompts(8, [9, 3, 7])
    config = GenerationConfig(max_new_tokens=5, end_token=7)
    runtime.table[..., 7] = -100
    answers = generate_tokens(runtime, prompts, config, PAD)
    assert runtime.capacity == 10
    assert [len(answer.tokens) for [answer] in answers] == [1, 5, 3]
    assert {answer.finish_reason for [answer] in answers} == {"length"}


def test_ids_that_only_the_model_has_never_come():
    runtime = ToyRuntime(20)
    runtime.table[..., 10:] += 10
    for method, penalty in (("greedy", 1.1), ("greedy", 1.0), ("sample", 1.1), ("beam", 1.1)):
        config = GenerationConfig(method=method, max_new_tokens=20, repetition_penalty=penalty)
        [[completion]] = generate_tokens(runtime, [[1, 2]], config, PAD, vocab_size=10)
        assert completion.tokens and max(completion.tokens) < 10
        assert completion.log_prob < -5 * len(completion.tokens)  # of all ids


def test_a_row_does_not_depend_on_its_neighbours():
    runtime = ToyRuntime(30, spread=1.0)
    prompts = random_prompts(30, [3, 8, 1, 5])
    config = GenerationConfig(
        method="sample", max_new_tokens=15, top_k=20, top_p=0.9, presence_penalty=0.3, seed=7, num_samples=3
    )
    whole = generate_tokens(runtime, prompts, config, PAD)
    assert len({tuple(answer.tokens) for answer in whole[0]}) == 3
    assert generate_tokens(runtime, prompts[:2], config, PAD) == whole[:2]
    changed = [*prompts[:3], [1] * 20]
    assert generate_tokens(runtime, changed, config, PAD)[:3] == whole[:3]
    single = generate_tokens(runtime, prompts, replace(config, num_samples=1), PAD)
    assert single == [answers[:1] for answers in whole]
    assert generate_tokens(runtime, prompts, replace(config, seed=8), PAD) != whole


def test_sampled_answers_follow_the_model():
    """Compare frequencies of whole answers of two tokens with their probabilities, which depend on the cache."""
    runtime, draws = ToyRuntime(5, spread=1.0), 4000
    config = GenerationConfig(method="sample", max_new_tokens=2, end_token=4, num_samples=draws)
    [answers] = generate_tokens(runtime, [[1, 3]], config, PAD)
    found, freedom, chi_square = {}, -1, 0.0
    for answer in answers:
        found.setdefault(tuple(answer.tokens), []).append(answer.log_prob)
    for tokens, log_prob, _ in all_answers(runtime, [1, 3], 4, 2):
        expected = draws * math.exp(log_prob)
        log_probs = found.get(tuple(tokens), [])
        chi_square += (len(log_probs) - expected) ** 2 / expected
        freedom += 1
        np.testing.assert_allclose(log_probs, log_prob, rtol=1e-5)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_steps_grow_the_answers_token_by_token():
    runtime = ToyRuntime(12, seed=1)
    prompts = random_prompts(12, [1, 5, 3])
    config = GenerationConfig(method="sample", max_new_tokens=8, end_token=3)
    final = generate_tokens(runtime, prompts, config, PAD)
    for step, answers in enumerate(stream_tokens(runtime, prompts, config, PAD), 1):
        for [answer], [whole] in zip(answers, final, strict=True):
            assert answer.tokens == whole.tokens[:step]


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([], {}, "no prompt"),
        ([[1], []], {}, "prompt 2 of 2 has no tokens"),
        ([[1] * 16], {}, "prompt 1 of 1 has 16 tokens.*seq_length of 16.*at most 15"),
        ([[1, 12]], {}, "the id 12, outside the vocabulary of 12"),
        ([[-1, 3]], {}, "the id -1"),
        ([[1]], {"end_token": 12}, "end_token 12 is outside the vocabulary of 12"),
    ],
)
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_bad_prompts_are_refused_at_once(prompts, settings, message, method):
    config = GenerationConfig(method=method, **settings)
    with pytest.raises(InputError, match=message):
        stream_tokens(ToyRuntime(12, seq_length=16), prompts, config, PAD)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_model_that_gives_nan_is_reported(method):
    runtime = ToyRuntime(12)
    runtime.table[:] = np.nan
    with pytest.raises(InputError, match="not finite"):
        generate_tokens(runtime, [[1]], GenerationConfig(method=method), PAD)
