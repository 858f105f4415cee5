"""The scoring loop against a float64 model that computes each text alone."""

import numpy as np
import pytest

from src.inference.mindspore import scoring
from src.inference.mindspore.load import build_runtime
from src.inference.mindspore.scoring import TokenScorer, plan_rows
from src.inference.padding import row_length
from src.inference.score_request import Request
from src.parallel.paged_attention import attend_by_caches
from tests.support import numpy_pangu
from tests.support.programs import TINY, random_model

CHANGES = dict(seq_length=96)


@pytest.fixture(scope="module")
def model_and_weights():
    model, weights = random_model(seed=5, **CHANGES)
    build_runtime(model, cpu_kernels=True)
    return model, weights


def draw_group(draw, shared, lengths):
    """Make requests with a common beginning, different continuations and various starts."""
    beginning = draw.integers(10, 50, shared).tolist()
    texts = [
        beginning + [10 + number, *draw.integers(10, 50, length - 1).tolist()] for number, length in enumerate(lengths)
    ]
    return [Request(text, int(draw.integers(1, len(text)))) for text in texts]


def groups():
    draw = np.random.default_rng(0)
    sizes = [
        (60, (3, 1, 7, 2)),
        (0, (20, 9)),
        (1, (2, 2)),
        (10, (30, 30, 30)),
        (80, (16, 17)),
        (33, (5,)),
        (40, (9, 9, 1, 1, 20, 3, 2, 2, 8, 5)),
    ]
    return [draw_group(draw, *size) for size in sizes]


def truth(weights, config, request):
    ids = np.array([request.tokens])
    size = ids.shape[1] - 1
    logits = numpy_pangu.logits(weights, config, ids[:, :-1], np.arange(size)[None], np.tril(np.ones((1, size, size))))
    return -numpy_pangu.token_losses(logits, ids)[0, request.start - 1 :]


@pytest.mark.parametrize("start", [1, 5])
def test_predictions_are_the_specification_s(model_and_weights, start, monkeypatch):
    """The logits come in pieces; the last piece is shorter."""
    monkeypatch.setattr(scoring, "LOSSES_AT_ONCE", 4)
    model, weights = model_and_weights
    [request], *_ = (group for group in groups() if len(group) == 1)
    ids = np.array([request.tokens])
    size = ids.shape[1] - 1
    mask = np.tril(np.ones((1, size, size)))
    expected = numpy_pangu.logits(weights, model.config, ids[:, :-1], np.arange(size)[None], mask)[0, start - 1 :]
    found = list(TokenScorer(model, cpu_kernels=True).predictions(request.tokens, start))
    assert len(found) == -(-len(expected) // 4)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


def scores(model, wanted, **settings):
    found = dict(TokenScorer(model, **settings).score(wanted))
    return [found[number] for number in range(len(wanted))]


def flat(found):
    return np.concatenate([one for group in found for one in group])


def test_scores_are_the_specification_s(model_and_weights):
    model, weights = model_and_weights
    found = scores(model, groups(), batch_size=2, cpu_kernels=True)
    for group, group_scores in zip(groups(), found, strict=True):
        for request, own in zip(group, group_scores, strict=True):
            assert own.dtype == np.float32 and len(own) == len(request.tokens) - request.start
            np.testing.assert_allclose(own, truth(weights, model.config, request), atol=1e-4)


def test_neither_batching_nor_sharing_nor_kernels_change_a_score(model_and_weights):
    model, _ = model_and_weights
    together = scores(model, groups(), batch_size=4)
    alone = [scores(model, [group], batch_size=1, share=False)[0] for group in groups()]
    np.testing.assert_allclose(flat(together), flat(alone), atol=1e-5)
    np.testing.assert_allclose(flat(scores(model, groups(), batch_size=4, cpu_kernels=True)), flat(alone), atol=1e-5)
    assert np.abs(flat(alone)).max() > 5


def test_texts_are_scored_by_plain_attention_where_ascend_s_operators_generate():
    """These operators are no part of the graph: a CPU does not have them."""
    model, weights = random_model(seed=5, **CHANGES)
    attend_by_caches(model)
    for group, found in zip(groups()[:2], scores(model, groups()[:2]), strict=True):
        for request, own in zip(group, found, strict=True):
            np.testing.assert_allclose(own, truth(weights, model.config, request), atol=1e-4)


def test_a_text_may_end_one_after_the_position_table(model_and_weights):
    model, weights = model_and_weights
    draw = np.random.default_rng(3)
    request = Request(draw.integers(10, 50, 97).tolist(), 90)
    np.testing.assert_allclose(scores(model, [[request]])[0][0], truth(weights, model.config, request), atol=1e-4)


def test_a_beginning_that_is_all_of_a_request_is_shared(model_and_weights):
    """One text is the beginning of another."""
    model, weights = model_and_weights
    text = np.random.default_rng(4).integers(10, 50, 70).tolist()
    group = [Request(text, 5), Request(text[:60], 50), Request(text, 69)]
    assert len(plan_rows(group, 32, 96)) == 1
    for request, own in zip(group, scores(model, [group])[0], strict=True):
        np.testing.assert_allclose(own, truth(weights, model.config, request), atol=1e-4)


def test_margins_tell_what_the_model_would_say(model_and_weights):
    model, weights = model_and_weights
    draw = np.random.default_rng(9)
    text = draw.integers(10, 50, 20).tolist()
    size = len(text)
    logits = numpy_pangu.logits(
        weights, model.config, np.array([text]), np.arange(size)[None], np.tril(np.ones((1, size, size)))
    )[0]
    text.append(int(logits[-1].argmax()))
    [[found]] = scores(model, [[Request(text, 15)]], margins=True)
    np.testing.assert_allclose(found[0], truth(weights, model.config, Request(text, 15)), atol=1e-4)
    np.testing.assert_allclose(
        found[1], [row.max() - row[label] for row, label in zip(logits[14:], text[15:], strict=True)], atol=1e-4
    )
    assert found[1][-1] == 0 < found[1][:-1].max()


def test_what_is_shared_is_computed_once():
    """Four candidates of 5 tokens after 200 common tokens need one row of 256 instead of four."""
    draw = np.random.default_rng(1)
    group = draw_group(draw, 200, (5, 5, 5, 5))
    [row] = plan_rows(group, 512, 1024)
    assert len(row.tokens) == 200 + 4 * 4 and row.shared == 200
    assert row.branches.tolist() == [0] * 200 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert row.positions.tolist() == [*range(200), *[200, 201, 202, 203] * 4]
    assert len(plan_rows(group, 512, 1024, share=False)) == 4


def test_the_cheapest_rows_are_taken():
    draw = np.random.default_rng(2)
    assert len(plan_rows(draw_group(draw, 2, (100, 100, 100)), 512, 1024)) == 3
    group = draw_group(draw, 400, (300,) * 8)
    rows = plan_rows(group, 512, 1024)
    assert 1 < len(rows) < 8 and max(len(row.tokens) for row in rows) <= 2048
    assert [request for row in rows for request in row.requests] == group


def test_few_shapes_are_compiled(model_and_weights):
    """Lengths of rows and sizes of batches are powers of two."""
    model, _ = model_and_weights
    scorer, shapes = TokenScorer(model, batch_size=3), set()
    compute = scorer._hidden_states

    def spy(ids, *others):
        shapes.add(ids.shape)
        return compute(ids, *others)

    scorer._hidden_states = spy
    draw = np.random.default_rng(6)
    texts = [[Request(draw.integers(10, 50, length).tolist())] for length in range(2, 96)]
    assert [number for number, _ in sorted(scorer.score(texts), key=lambda result: result[0])] == list(range(94))
    assert {length for _, length in shapes} == {16, 32, 64, 128} and len(shapes) <= 8
    assert scorer.computed_tokens <= 2.2 * sum(length - 1 for length in range(2, 96))


def test_groups_come_when_they_are_done(model_and_weights):
    model, _ = model_and_weights
    asked = []

    def endless():
        number = 0
        while True:
            asked.append(number)
            number += 1
            yield [Request([11, 12, 13, 14])]

    results = TokenScorer(model, batch_size=1).score(endless())
    assert [next(results)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(asked) <= 2 * 96 // 16


def test_lengths_of_rows():
    assert [row_length(tokens) for tokens in (1, 16, 17, 1024, 1025)] == [16, 16, 32, 1024, 2048]


@pytest.mark.parametrize("start", [0, 3, 9])
def test_a_request_scores_something(start):
    with pytest.raises(ValueError, match="start"):
        Request([1, 2, 3], start)


def test_experts_do_not_mix_what_is_computed_together():
    model, weights = random_model(seed=8, num_experts=4, expert_interval=1, expert_top_k=2)
    group = draw_group(np.random.default_rng(7), 20, (3, 2, 4))
    assert len(plan_rows(group, 32, TINY.seq_length)) == 1
    for request, own in zip(group, scores(model, [group])[0], strict=True):
        ids = np.array([request.tokens])
        size = ids.shape[1] - 1
        logits = numpy_pangu.logits(
            weights,
            model.config,
            ids[:, :-1],
            np.arange(size)[None],
            np.tril(np.ones((1, size, size))),
            drop_tokens=False,
        )
        expected = -numpy_pangu.token_losses(logits, ids)[0, request.start - 1 :]
        np.testing.assert_allclose(own, expected, atol=1e-4)
