"""Evaluation twice in one folder: what was predicted with anything else is predicted again, and nothing is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.evaluation import run
from src.evaluation.tasks import tnews
from src.inference.mindspore.load import load_model
from src.tokenization_jieba import words_for_sentencepiece
from tests.conftest import PHRASES
from tests.support.evaluation import configuration
from tests.support.vocabularies import train_vocab

TNEWS, CMRC = ["--task=tnews", "--limit=6"], ["--task=cmrc2018", "--limit=3", "--model.seq_length=128"]


def checkpoint(path, vocab, factor=1.0):
    """Write random weights times a factor."""
    model = load_model(configuration(vocab, "none", "", "--task=tnews").model, None)
    weights = {one.name: one.asnumpy() for one in model.get_parameters()}
    ckpt_file.write(path, ((name, (values * factor).astype(np.float32)) for name, values in weights.items()))
    return path


def evaluate(vocab, folder, output, flags=TNEWS, weights=None):
    run.evaluate(configuration(vocab, folder, output, *flags), weights)
    return predictions(output)


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def other_vocabulary(folder):
    """Train a vocabulary of the same size that cuts the same texts into other pieces."""
    lines = [*reversed(PHRASES), "问：男女：答该答案来自对话", "阅读文章，。?", "这是关于文章故事化体育科技房产游戏："]
    text = "\n".join(words_for_sentencepiece(line) for line in lines * 20)
    return train_vocab(folder, text, model_type="bpe")


@pytest.fixture(scope="module")
def evaluated(eval_vocab, tnews_folder, tmp_path_factory):
    """Return the folder of a finished evaluation, to be copied."""
    evaluate(eval_vocab, tnews_folder, folder := tmp_path_factory.mktemp("evaluated"))
    return folder


@pytest.fixture
def output(evaluated, tmp_path):
    """Return a copy of `evaluated`."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


def changed(name, vocab, folder, tmp_path, monkeypatch):
    """Return arguments of the first evaluation, what is done after it, new arguments, and the word for the change."""
    first = dict(vocab=vocab, folder=folder)
    if name == "weights":  # the run's folder has the same name after more training
        path = checkpoint(tmp_path / "model.ckpt", vocab)
        return first | {"weights": path}, lambda: checkpoint(path, vocab, 1.1), {}, "weights"
    if name == "shapes":
        return first, None, {"flags": [*TNEWS, "--model.num_layers=3"]}, "model"
    if name == "precision":
        return first, None, {"flags": [*TNEWS, "--model.softmax_compute_dtype=float16"]}, "model"
    if name == "vocabulary":
        return first, None, {"vocab": other_vocabulary(tmp_path)}, "tokenizer"
    if name == "seed":
        return first, None, {"flags": [*TNEWS, "--seed=3"]}, "seed"
    assert name == "prompt"
    return first, lambda: monkeypatch.setattr(tnews, "CONTEXT", "文章{label}："), {}, "the example or its prompt"


@pytest.mark.parametrize("name", ["weights", "shapes", "precision", "vocabulary", "seed", "prompt"])
def test_what_a_change_concerns_is_predicted_again(
    name, eval_vocab, tnews_folder, output, tmp_path, monkeypatch, capsys
):
    first, change, second, told = changed(name, eval_vocab, tnews_folder, tmp_path, monkeypatch)
    if "weights" in first:
        shutil.rmtree(output)
        evaluate(output=output, **first)
    before = predictions(output)
    if change:
        change()
    capsys.readouterr()
    after = evaluate(output=output, **first | second)
    printed = capsys.readouterr().out
    fresh = evaluate(output=tmp_path / "fresh", **first | second)
    assert after == fresh and [one["scores"] for one in after] != [one["scores"] for one in before]
    assert predictions(output / "earlier_1") == before and (output / "earlier_1/result.json").is_file()
    assert f"6 earlier predictions are not used, since they were made with other {told}; they are in" in printed
    assert "from an earlier run" not in printed


def test_only_changed_examples_are_predicted_again(eval_vocab, tnews_folder, tmp_path, capsys):
    folder, output = tmp_path / "tnews", tmp_path / "run"
    folder.mkdir()
    lines = (tnews_folder / "dev.json").read_text().splitlines()
    (folder / "dev.json").write_text("\n".join(lines))
    before = evaluate(eval_vocab, folder, output)
    other = json.loads(lines[2]) | {"sentence": json.loads(lines[2])["sentence"][::-1]}
    (folder / "dev.json").write_text("\n".join([*lines[:2], json.dumps(other), *lines[3:]]))
    capsys.readouterr()
    after = evaluate(eval_vocab, folder, output)
    printed = capsys.readouterr().out
    assert "1 earlier predictions are not used" in printed and "5 of them from an earlier run" in printed
    assert after[2]["scores"] != before[2]["scores"] and predictions(output / "earlier_1") == before
    assert after[:2] + after[3:] == before[:2] + before[3:]


def test_settings_of_answers_count_for_answers_only(eval_vocab, cmrc_folder, tnews_folder, output, tmp_path, capsys):
    flag = "--generation.repetition_penalty=1.5"
    evaluate(eval_vocab, cmrc_folder, tmp_path / "cmrc", CMRC)
    capsys.readouterr()
    evaluate(eval_vocab, cmrc_folder, tmp_path / "cmrc", [*CMRC, flag])
    assert "3 earlier predictions are not used, since they were made with other generation" in capsys.readouterr().out
    evaluate(eval_vocab, tnews_folder, output, [*TNEWS, flag])
    assert "6 of them from an earlier run" in capsys.readouterr().out


def test_predictions_of_an_older_version_are_not_mixed(eval_vocab, tnews_folder, output, capsys):
    (output / "settings.json").write_text(json.dumps({"checkpoint": "random weights", "task": "tnews"}))
    evaluate(eval_vocab, tnews_folder, output)
    assert "6 earlier predictions are not used" in capsys.readouterr().out


def test_settings_that_can_t_be_read(eval_vocab, tnews_folder, output):
    (output / "settings.json").write_text("{")
    with pytest.raises(InputError, match="settings.json can't be read .* give another --output"):
        evaluate(eval_vocab, tnews_folder, output)
