"""The loop against brute force, on a toy model whose logits depend on the last two tokens of its cache."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator, generate_tokens, stream_tokens
from tests.support.toy_runtime import PAD, ToyRuntime


def greedy_answer(runtime, prompt, end_token, limit):
    """Tokens, log-probability and finish reason by the plainest of loops."""
    tokens, total = [], 0.0
    while len(tokens) < limit:
        log_probs = runtime.log_probs(prompt + tokens)
        token = int(log_probs.argmax())
        total += log_probs[token]
        if token == end_token:
            return tokens, total, "end"
        tokens.append(token)
    return tokens, total, "length"


def assert_same(completion, expected):
    tokens, log_prob, reason = expected
    assert (completion.tokens, completion.finish_reason) == (tokens, reason)
    assert completion.log_prob == pytest.approx(log_prob, rel=1e-5)


def random_prompts(vocab_size, lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


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
    """No decode without need, every answer token read once and in order, finished rows within the capacity."""
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
        for step, (ids, positions) in enumerate(runtime.decoded):
            if step < drawn[row] - 1:
                assert (ids[row], positions[row]) == (answer.tokens[step], length + step)
            else:
                assert (ids[row], positions[row]) == (PAD, length + drawn[row] - 2)
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
    for method in ("greedy", "sample", "beam"):
        config = GenerationConfig(method=method, max_new_tokens=20, repetition_penalty=1.1)
        [[completion]] = generate_tokens(runtime, [[1, 2]], config, PAD, vocab_size=10)
        assert completion.tokens and max(completion.tokens) < 10
        assert completion.log_prob < -5 * len(completion.tokens)  # of the model's own distribution


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
    """Frequencies of whole two-token answers against their probabilities, so the cache takes part."""
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


# Beam search


def all_answers(runtime, prompt, end_token, limit):
    """Every possible answer: those that end within `limit` tokens, and those cut off there."""
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(runtime.vocab_size), repeat=length):
            if end_token in tokens[:-1] or (length < limit and tokens[-1] != end_token):
                continue
            total = sum(runtime.log_probs(prompt + list(tokens[:i]))[token] for i, token in enumerate(tokens))
            ended = tokens[-1] == end_token
            yield list(tokens[: len(tokens) - ended]), total, "end" if ended else "length"


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
    """A beam search of a few lines: no cache, no rows, no early end."""
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
    """A presence penalty beyond all logits: no token may come twice, whatever beam it came from."""
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


# Text


class PieceTokenizer:
    """Ids of byte strings, as in a byte-level vocabulary; encodes nothing but single pieces."""

    def __init__(self, pieces):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.vocab_size = len(pieces)

    def encode(self, text):
        return [self.pieces.index(character.encode()) for character in text]

    def decode(self, ids):
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")


class Script(ToyRuntime):
    """Says the same tokens after any prompt."""

    def __init__(self, tokens, vocab_size):
        super().__init__(vocab_size)
        self.tokens = tokens

    def prefill(self, ids, lengths, capacity):
        self.lengths = lengths
        super().prefill(ids, lengths, capacity)
        return self._say(lengths - 1)

    def decode(self, ids, positions):
        super().decode(ids, positions)
        return self._say(positions)

    def _say(self, positions):
        return np.eye(self.vocab_size, dtype=np.float32)[[self.tokens[i] for i in positions + 1 - self.lengths]]


PIECES = ["<end>", "a", "b", "ab", "bca", "c", "\n", "问", "：", "问：", "中".encode()[:1], "中".encode()[1:], b"\xff"]


def said(pieces, **settings):
    """generate's answer and stream's pieces, when the model says `pieces` and then for ever 'a'."""
    tokenizer = PieceTokenizer(PIECES)
    tokens = [tokenizer.pieces.index(piece.encode() if isinstance(piece, str) else piece) for piece in pieces]
    config = GenerationConfig(max_new_tokens=len(tokens), end_token=0, **settings)
    generator = TextGenerator(Script(tokens, len(PIECES)), tokenizer, config, PAD)
    [[completion]] = generator.generate(["b"])
    return completion, list(generator.stream("b"))


@pytest.mark.parametrize(
    "pieces, stop, text, reason, streamed",
    [
        (["a", "b", "c"], [], "abc", "length", ["a", "b", "c"]),
        (["a", "b", "<end>", "c"], [], "ab", "end", ["a", "b"]),
        (["a", "b", "<end>", "c"], ["bx"], "ab", "end", ["a", "b"]),
        (["<end>"], ["a"], "", "end", []),
        (["c", "a", "\n", "问：", "b"], ["\n问"], "ca", "stop", ["c", "a"]),  # over a border, and within a token
        (["c", "bca", "c"], ["bc"], "c", "stop", ["c"]),
        (["c", "bca", "c"], ["ca", "bcac"], "cb", "stop", ["cb"]),
        (["a", "bca", "c"], ["ca", "bc"], "a", "stop", ["a"]),  # both come with one token: the earlier place counts
        (["a", "a", "b", "a", "c"], ["aabb", "bac"], "aa", "stop", ["aa"]),  # the one that did not come held text back
        (["a", "a", "a", "b", "c"], ["aab"], "a", "stop", ["a"]),
        (["a", "a", "a", "c"], ["aab"], "aaac", "length", ["a", "aac"]),
        (["c", "a", "b"], ["abc"], "cab", "length", ["c", "ab"]),  # the beginning of a stop text, shown after all
        (["a", PIECES[10], PIECES[11], "b"], [], "a中b", "length", ["a", "中", "b"]),
        (["a", PIECES[10], "b"], [], "a\ufffdb", "length", ["a", "\ufffdb"]),
        (["a", b"\xff", PIECES[10]], [], "a\ufffd\ufffd", "length", ["a", "\ufffd\ufffd"]),
        (["a", "b", PIECES[10], PIECES[11], "c"], ["b中"], "a", "stop", ["a"]),
    ],
)
def test_stop_texts_and_streams(pieces, stop, text, reason, streamed):
    completion, shown = said(pieces, stop=stop)
    assert (completion.text, completion.finish_reason) == (text, reason)
    assert shown == streamed


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_streamed_pieces_add_up_to_the_answer(method):
    tokenizer = PieceTokenizer(PIECES)
    reasons = set()
    for seed in range(60):
        config = GenerationConfig(
            method=method,
            max_new_tokens=12,
            end_token=0,
            seed=seed,
            num_samples=2,
            stop=["abab", "问：a", "cc", "中b"][seed % 3 :],
            num_beams=3,
        )
        generator = TextGenerator(ToyRuntime(len(PIECES) + 3, seed=seed), tokenizer, config, PAD)
        [answers] = generator.generate(["a"])
        assert "".join(generator.stream("a")) == answers[0].text
        for answer in answers:
            decoded = tokenizer.decode(answer.tokens)
            assert decoded.startswith(answer.text) and not any(stop in answer.text for stop in config.stop)
            assert (decoded == answer.text) == (answer.finish_reason != "stop")
            reasons.add(answer.finish_reason)
    assert reasons == {"end", "stop", "length"}


def test_texts_of_different_lengths():
    tokenizer = PieceTokenizer(PIECES)
    runtime = ToyRuntime(len(PIECES))
    config = GenerationConfig(max_new_tokens=6, end_token=0)
    answers = TextGenerator(runtime, tokenizer, config, PAD).generate(["a", "abcab", "问："])
    for text, [answer] in zip(["a", "abcab", "问："], answers, strict=True):
        expected = greedy_answer(runtime, tokenizer.encode(text), 0, 6)
        assert_same(answer, expected)
        assert answer.text == tokenizer.decode(expected[0])


# Bad input


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


def test_bad_texts_are_refused_at_once():
    tokenizer = PieceTokenizer(PIECES)
    with pytest.raises(InputError, match="13 pieces.*vocabulary of only 12"):
        TextGenerator(ToyRuntime(12), tokenizer, GenerationConfig(), PAD)
    generator = TextGenerator(ToyRuntime(13), tokenizer, GenerationConfig(), PAD)
    with pytest.raises(InputError, match="no tokens"):
        generator.stream("")
    with pytest.raises(InputError, match="no tokens"):
        generator.generate(["a", ""])


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_model_that_gives_nan_is_reported(method):
    runtime = ToyRuntime(12)
    runtime.table[:] = np.nan
    with pytest.raises(InputError, match="not finite"):
        generate_tokens(runtime, [[1]], GenerationConfig(method=method), PAD)
