"""Metrics of answers, against values computed by hand or by brute force."""

import numpy as np
import pytest

from src.evaluation.tasks import metrics


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("郑州市。", ["郑州市"], 1, 1),
        ("郑州", ["郑州市"], 0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("是郑州市的", ["郑州市"], 0, 2 * (3 / 5) * 1 / (3 / 5 + 1)),
        ("郑州在河南", ["河南", "郑州在河南省"], 0, 2 * 1 * (5 / 6) / (1 + 5 / 6)),
        ("河南郑州", ["郑州河南"], 0, 0.5),  # only the longest common run counts
        ("", ["郑州"], 0, 0),
        ("光荣和Koei Games", ["光荣和koei games"], 1, 1),  # in lower case
        ("1999年", ["1998年"], 0, 0.5),  # the segments are 1999 and 年
        ("《红楼梦》……", ["红楼梦"], 0, 2 * 0.6 / 1.6),  # the ellipsis is kept
    ],
)
def test_exact_match_and_f1(prediction, answers, em, f1):
    found = metrics.exact_match_and_f1(prediction, answers)
    assert found["em"] == em and found["f1"] == pytest.approx(f1)


def test_the_longest_run_by_brute_force():
    draw = np.random.default_rng(0)
    for _ in range(50):
        first, second = ("".join(draw.choice(list("abc"), draw.integers(0, 9))) for _ in range(2))
        longest = max(
            (
                end - begin
                for begin in range(len(first) + 1)
                for end in range(begin, len(first) + 1)
                if first[begin:end] in second
            ),
            default=0,
        )
        assert metrics.longest_common_run(first, second) == longest


def test_rouge_1_counts_segments():
    assert metrics.rouge_1("好好学习", ["好学"])["rouge_1"] == pytest.approx(2 * (2 / 4) * 1 / (2 / 4 + 1))
    assert metrics.rouge_1("无", ["好学", "无"])["rouge_1"] == 1
    assert metrics.rouge_1("", ["好"])["rouge_1"] == 0


@pytest.mark.parametrize(
    ("prediction", "right"), [("明月，何时", 1), (" 明 月", 1), ("“明月”", 1), ("明日", 0), ("", 0)]
)
def test_a_cloze_s_answer_comes_first(prediction, right):
    assert metrics.begins_with_answer(prediction, ["明月"]) == {"top1_acc": right}
