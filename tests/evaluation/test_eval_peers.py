"""Our judgements against MindFormers' metrics, which run in an environment of their own (MINDFORMERS_PYTHON)."""

import json
import os
import subprocess

import numpy as np
import pytest

from src.evaluation.tasks.cmrc2018 import judge_as_mindformers
from src.inference.mindspore.load import load_model
from src.tokenization_jieba import JiebaTokenizer
from tests.support import numpy_pangu
from tests.support.evaluation import configuration, evaluate
from tests.support.programs import ROOT, TIMEOUT


@pytest.fixture(scope="module")
def found(eval_vocab, tnews_folder, cmrc_folder, tmp_path_factory):
    """Our finished examples of both tasks, and MindFormers' judgement of them."""
    python = os.environ.get("MINDFORMERS_PYTHON")
    if not python:
        pytest.skip(
            "MINDFORMERS_PYTHON is not set: the interpreter of an environment as in tests/peers/mindformers_metrics.py"
        )
    folder = tmp_path_factory.mktemp("peer")
    headlines = evaluate(eval_vocab, tnews_folder, folder / "tnews", "--task=tnews", "--variant=mindformers")
    questions = evaluate(
        eval_vocab, cmrc_folder, folder / "cmrc", "--task=cmrc2018", "--variant=mindformers", "--model.seq_length=128"
    )
    sentences = [json.loads(line)["sentence"] for line in (tnews_folder / "dev.json").read_text().splitlines()]
    config = configuration(eval_vocab, tnews_folder, folder, "--task=tnews").model
    np.savez(folder / "questions.npz", **prompts(headlines, sentences, config, JiebaTokenizer(eval_vocab)))
    pairs = [[one["prediction"], one["answers"][0]] for one in questions]
    # A random model gives no right answer, so pairs that agree partly are added.
    pairs += [
        [answer[:length] + end, answer] for _, answer in pairs for length, end in ((9, "。"), (4, "，是"), (2, ""))
    ]
    (folder / "answers.json").write_text(json.dumps(pairs))
    subprocess.run(
        [
            python,
            "tests/peers/mindformers_metrics.py",
            folder / "questions.npz",
            folder / "answers.json",
            folder / "found.json",
        ],
        check=True,
        timeout=TIMEOUT,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return headlines, pairs, json.loads((folder / "found.json").read_text())


def prompts(headlines, sentences, config, tokenizer):
    """Return the input of MindFormers' metric: padded prompts, and their logits as numpy computes them."""
    weights = {one.name: one.asnumpy() for one in load_model(config, None).get_parameters()}
    shape = (len(headlines), len(headlines[0]["labels"]), config.seq_length)
    ids, mask = np.full(shape, config.pad_token, np.int32), np.zeros(shape, np.float32)
    for row, (headline, sentence) in enumerate(zip(headlines, sentences, strict=True)):
        for column, label in enumerate(headline["labels"]):
            before = tokenizer.encode(f"这是关于{label}的文章：")
            text = tokenizer.encode(f"这是关于{label}的文章：{sentence}")[: config.seq_length]
            ids[row, column, : len(text)] = text
            mask[row, column, len(before) : len(text)] = 1
    flat, size = ids.reshape(-1, config.seq_length), config.seq_length
    logits = numpy_pangu.logits(
        weights,
        config,
        flat,
        np.tile(np.arange(size), (len(flat), 1)),
        np.tile(np.tril(np.ones((size, size))), (len(flat), 1, 1)),
    )
    return {
        "logits": logits.reshape(*shape, -1).astype(np.float32),
        "ids": ids,
        "mask": mask,
        "labels": [one["labels"].index(one["answer"]) for one in headlines],
    }


def test_tnews_has_mindformers_verdicts(found):
    headlines, _, theirs = found
    ours = [one["top1_acc"] for one in headlines]
    assert ours == theirs["right"] and 0 < sum(ours) < len(ours)


def test_cmrc2018_has_mindformers_em_and_f1(found):
    _, pairs, theirs = found
    ours = [judge_as_mindformers(prediction, [answer]) for prediction, answer in pairs]
    for name in ("em", "f1"):
        assert np.mean([one[name] for one in ours]) == pytest.approx(theirs[name], abs=1e-12)
        assert 0 < theirs[name] < 1
