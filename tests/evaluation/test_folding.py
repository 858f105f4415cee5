"""Answers that a tokenizer can't write as they are published: stop texts, and scores of folded texts."""

import json
from pathlib import Path

import numpy as np
import pytest

from src.common.settings import GenerationConfig
from src.evaluation.backends import ModelAnswerer
from src.evaluation.evaluate import Item, predict_all
from src.evaluation.predictions import Predictions
from src.evaluation.prompts import Demonstrations, Prompting
from src.evaluation.report import Report
from src.evaluation.tasks.cmrc2018 import PAPER
from src.evaluation.tasks.metrics import begins_with_answer, exact_match_and_f1, folder_of, rouge_1
from src.evaluation.tasks.task import Prompt
from src.tokenization_jieba import JiebaTokenizer
from tests.support.toy_runtime import PAD, ToyRuntime


@pytest.fixture(scope="module")
def tokenizer(eval_vocab):
    return JiebaTokenizer(eval_vocab)


@pytest.mark.parametrize(
    ("right", "official", "folded"),
    [
        ("明月？", 0, 1),  # the official figure drops `？` but not the `?` that the model writes
        ("（明月）", 0, 1),
        ("１３只", 0, 1),
        ("明月", 1, 1),
        ("明月…", 0, 1),
        ("春风", 1, 1),
    ],
)
def test_a_right_answer_counts_after_both_sides_are_folded(right, official, folded, tokenizer):
    written, fold = tokenizer.fold(right), folder_of(tokenizer.fold)
    assert exact_match_and_f1(written, [right])["em"] == official
    assert exact_match_and_f1(fold(written), [fold(right)]) == {"em": folded, "f1": folded}
    assert rouge_1(fold(written), [fold(right)]) == {"rouge_1": folded}
    assert begins_with_answer(fold(written), [fold(right)]) == {"top1_acc": folded}


def test_folding_makes_no_wrong_answer_right(tokenizer):
    fold = folder_of(tokenizer.fold)
    assert exact_match_and_f1(fold("春风?"), [fold("明月？")])["em"] == 0
    assert exact_match_and_f1(fold("明月"), [fold("明月？")])["em"] == exact_match_and_f1("明月", ["明月？"])["em"] == 1


class Says(ToyRuntime):
    """Generates one text after any prompt."""

    def __init__(self, tokenizer, text):
        super().__init__(tokenizer.vocab_size)
        self.tokens = [*tokenizer.encode(text), 9]

    def _logits(self, positions, rows):
        return np.eye(self.vocab_size, dtype=np.float32)[[self.tokens[position] for position in positions]]


class Answers:
    """An answerer that gives one text to each prompt."""

    def __init__(self, text):
        self.text = text

    def answer(self, prompts, config):
        return ((number, self.text) for number, _ in prompts)


def test_both_figures_are_reported(tokenizer, tmp_path):
    """The official figures stay as they are, and the last line has no others."""
    item = Item(0, "dev.json", Prompt("春风", ["明月？"]))
    prompting = Prompting(PAPER, tokenizer, 64, PAD, "mean", Demonstrations())
    predictions = Predictions(Path(tmp_path), {}, {0: "digest"})
    predictions.begin()
    predict_all([item], prompting, predictions, None, Answers("明月?"), GenerationConfig(), shown=False)
    record = json.loads((tmp_path / "predictions.jsonl").read_text())
    assert (record["em"], record["em_folded"], record["f1_folded"]) == (0, 1, 1) and record["answers"] == ["明月？"]
    report = Report(PAPER, "cmrc2018", 0, [record])
    assert "em (folded)" in report.table() and "f1 (folded)" in report.table()
    assert report.closing_line() == "Metric for dataset cmrc2018 is {'em': 0.0, 'f1': 0.8}"
    [_, _, em_folded, _] = report.figures
    assert (em_folded.metric, em_folded.value, em_folded.interval, em_folded.reported) == (
        "em_folded",
        1,
        "Wilson",
        None,
    )


def test_stop_texts_of_a_benchmark_are_folded(tokenizer):
    answerer = ModelAnswerer(Says(tokenizer, "明月？春风"), tokenizer, PAD, 4)
    config = GenerationConfig(max_new_tokens=8, stop=["？"])
    assert list(answerer.answer([(0, [20])], config)) == [(0, "明月")]
