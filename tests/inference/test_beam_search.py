"""Beam search against brute force and a plain search without a cache, on a toy model."""

from dataclasses import replace

import pytest

from src.common.settings import GenerationConfig
from src.inference.loop import generate_tokens
from tests.support.toy_runtime import PAD, ToyRuntime, all_answers, assert_same, random_prompts


def value(answer, length_penalty):
    tokens, log_prob, reason = answer
    return log_prob / (len(tokens) + (reason == "end")) ** length_penalty


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("num_samples", [1, 6])
def test_a_wide_beam_finds_the_best_of_all_answers(length_penalty, num_samples):
    runtime = ToyRuntime(4, seed=3)
    prompts = [[1], [2, 0, 3], [0, 1]]
    config = GenerationConfig(
        method="beam",
        num_beams=256,
        num_samples=num_samples,
        max_new_tokens=4,
        end_token=2,
        length_penalty=length_penalty,
    )
    for prompt, completions in zip(prompts, generate_tokens(runtime, prompts, config, PAD), strict=True):
        best = sorted(all_answers(runtime, prompt, 2, 4), key=lambda answer: -value(answer, length_penalty))
        for completion, expected in zip(completions, best[:num_samples], strict=True):
            assert_same(completion, expected)


def beam_answers(runtime, prompt, config, limit):
    """Run a beam search without a cache, rows or an early end."""
    beams, ended = [([], 0.0)], []
    while beams:
        children = sorted(
            (
                (tokens + [token], total + log_prob)
                for tokens, total in beams
                for token, log_prob in enumerate(runtime.log_probs(prompt + tokens))
            ),
            key=lambda child: -child[1],
        )
        beams = []
        for tokens, total in children:
            if len(beams) == config.num_beams:
                break
            if tokens[-1] == config.end_token:
                ended.append((tokens[:-1], total, "end"))
            elif len(tokens) == limit:
                ended.append((tokens, total, "length"))
            else:
                beams.append((tokens, total))
    return sorted(ended, key=lambda answer: -value(answer, config.length_penalty))[: config.num_samples]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_beams", [2, 3, 12])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0])
def test_a_narrow_beam_equals_the_plain_search(seed, num_beams, length_penalty):
    runtime = ToyRuntime(8, seq_length=16, seed=seed)
    prompts = random_prompts(8, [1, 4, 2, 10], seed)
    config = GenerationConfig(
        method="beam", num_beams=num_beams, num_samples=2, max_new_tokens=9, end_token=5, length_penalty=length_penalty
    )
    answers = generate_tokens(runtime, prompts, config, PAD)
    assert runtime.reorders > 0
    for prompt, completions in zip(prompts, answers, strict=True):
        expected = beam_answers(runtime, prompt, config, min(9, 16 - len(prompt)))
        for completion, answer in zip(completions, expected, strict=True):
            assert_same(completion, answer)


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy(seed):
    runtime = ToyRuntime(12, seed=seed)
    prompts = random_prompts(12, [1, 6, 3], seed)
    greedy = GenerationConfig(max_new_tokens=10, end_token=3, repetition_penalty=1.3, frequency_penalty=0.2)
    beam = replace(greedy, method="beam", num_beams=1, length_penalty=0.0)
    for [expected], [completion] in zip(
        generate_tokens(runtime, prompts, greedy, PAD), generate_tokens(runtime, prompts, beam, PAD), strict=True
    ):
        assert_same(completion, (expected.tokens, expected.log_prob, expected.finish_reason))


def test_penalties_follow_the_beams():
    """With a presence penalty larger than all logits, no token may appear twice, whichever beam it comes from."""
    config = GenerationConfig(
        method="beam", num_beams=4, num_samples=4, max_new_tokens=9, presence_penalty=1000.0, end_token=9
    )
    runtime = ToyRuntime(10)
    runtime.table[..., 9] = -10000
    [answers] = generate_tokens(runtime, [[1, 2]], config, PAD)
    assert runtime.reorders > 0
    assert all(sorted(answer.tokens) == list(range(9)) for answer in answers)


def test_beam_search_stops_when_nothing_can_get_better():
    runtime = ToyRuntime(6)
    runtime.table[..., 2] += 20
    config = GenerationConfig(method="beam", num_beams=3, max_new_tokens=30, end_token=2, length_penalty=0.0)
    [[completion]] = generate_tokens(runtime, [[1]], config, PAD)
    assert (completion.tokens, completion.finish_reason) == ([], "end")
    assert runtime.decoded == []


def test_fewer_answers_than_beams():
    config = GenerationConfig(method="beam", num_beams=5, num_samples=5, max_new_tokens=1, end_token=1)
    [answers] = generate_tokens(ToyRuntime(2), [[1]], config, PAD)
    assert sorted((answer.tokens, answer.finish_reason) for answer in answers) == [([], "end"), ([0], "length")]
