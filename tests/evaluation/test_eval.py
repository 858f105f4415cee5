"""eval.py end to end on tiny models. Scores are compared with independent scorers."""

import json
import math

import numpy as np
import pytest

from src.common.errors import InputError
from src.evaluation import run as evaluation
from src.evaluation.config import typed_generation
from src.inference.mindspore.load import load_model
from src.tokenization_jieba import JiebaTokenizer
from tests.conftest import LABELS
from tests.support.evaluation import MODEL, configuration, evaluate, log_probs
from tests.support.programs import ROOT, run


def numpy_c3(path, vocab, config, score):
    """Yield each question with the scores of its choices: one text at a time, in float64."""
    tokenizer = JiebaTokenizer(vocab)
    weights = {parameter.name: parameter.asnumpy() for parameter in load_model(config.model, None).get_parameters()}
    length, pad = config.model.seq_length, config.model.pad_token
    for sentences, questions, _ in json.loads(path.read_text(encoding="utf-8")):
        for question in questions:
            scores = []
            for choice in question["choice"]:
                prompt = f"问：{question['question']}\n答：{choice}\n该答案来自对话："
                ids = tokenizer.encode(prompt + "".join(sentences))[:length]
                before = len(tokenizer.encode(prompt))
                if score == "modelzoo":  # its labels are the tokens shifted by one and a pad; its mask is on inputs
                    scores.append(-log_probs(weights, config.model, [*ids, pad])[before:].sum() / length)
                else:
                    scores.append(-log_probs(weights, config.model, ids)[before - 1 :].mean())
            yield question, scores


@pytest.mark.parametrize("score", ["mean", "modelzoo"])
def test_c3_is_scored_as_by_an_independent_scorer(score, eval_vocab, c3_folder, tmp_path, capsys):
    records = evaluate(eval_vocab, c3_folder, tmp_path / "run", "--task=c3", f"--score={score}", "--batch_size=2")
    config = configuration(eval_vocab, c3_folder, tmp_path, "--task=c3")
    truth = [
        one
        for name in ("c3-d-dev.json", "c3-m-dev.json")
        for one in numpy_c3(c3_folder / name, eval_vocab, config, score)
    ]
    assert len(records) == len(truth) == 18
    right = 0
    for record, (question, scores) in zip(records, truth, strict=True):
        np.testing.assert_allclose(record["scores"], scores, atol=1e-4)
        assert record["prediction"] == question["choice"][int(np.argmin(scores))]
        right += record["prediction"] == question["answer"]
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == f"Metric for dataset c3 is {{'top1_acc': {round(right / 18, 4)}}}"
    assert "texts are longer than the model's 96 tokens and lost their end" in output
    assert "c3-m-dev.json" in output and "53.42" in output


def test_shots_come_before_and_change_scores(eval_vocab, c3_folder, tmp_path):
    flags = ["--task=c3", "--limit=4", "--model.seq_length=256"]
    zero = evaluate(eval_vocab, c3_folder, tmp_path / "zero", *flags)
    two = evaluate(eval_vocab, c3_folder, tmp_path / "two", *flags, "--shots=2")
    other = evaluate(eval_vocab, c3_folder, tmp_path / "other", *flags, "--shots=2", "--seed=1")
    assert zero[0]["scores"] != two[0]["scores"] != other[0]["scores"]


def test_a_killed_run_goes_on(eval_vocab, tnews_folder, tmp_path, capsys):
    whole = evaluate(eval_vocab, tnews_folder, tmp_path / "whole", "--task=tnews")
    output = tmp_path / "killed"
    evaluate(eval_vocab, tnews_folder, output, "--task=tnews", "--limit=7")
    file = output / "predictions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = json.loads(lines[2]) | {"prediction": "kept", "top1_acc": 1.0}
    file.write_text(lines[4] + json.dumps(changed) + "\n" + lines[0] + lines[1][:30], encoding="utf-8")
    capsys.readouterr()
    resumed = evaluate(eval_vocab, tnews_folder, output, "--task=tnews")
    assert "20 examples" in (told := capsys.readouterr().out) and "3 of them from an earlier run" in told
    assert resumed.pop(2)["prediction"] == "kept"
    whole.pop(2)
    assert [record["number"] for record in resumed] == [number for number in range(20) if number != 2]
    for one, other in zip(resumed, whole, strict=True):
        assert (one["labels"], one["prediction"]) == (other["labels"], other["prediction"])
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)


def mindformers_tnews(path, rng):
    """Yield the examples of MindFormers' protocol: demonstration, labels, answer, sentence."""
    data = [json.loads(line) for line in path.read_text().splitlines()]
    gold = [LABELS[one["label_desc"]] for one in data]
    groups = [np.array([i for i, label in enumerate(gold) if label == name]) for name in sorted(set(gold))]
    for group in groups:
        rng.shuffle(group)
    first = np.concatenate([group[:1] for group in groups])
    rng.shuffle(first)
    shown = f"这是关于{gold[first[0]]}的文章：{data[first[0]]['sentence']}"[:150] + "\n"
    for one, label in zip(data, gold, strict=True):
        wrong = sorted(set(gold) - {label})
        names = [label] + [wrong[i] for i in rng.permutation(len(wrong))[:3]]
        yield shown, [names[i] for i in rng.permutation(4)], label, one["sentence"]


def test_tnews_in_mindformers_form(eval_vocab, tnews_folder, tmp_path):
    flags = ["--task=tnews", "--variant=mindformers", "--shots=1"]
    records = evaluate(eval_vocab, tnews_folder, tmp_path, *flags)
    config = configuration(eval_vocab, tnews_folder, tmp_path, *flags)
    weights = {parameter.name: parameter.asnumpy() for parameter in load_model(config.model, None).get_parameters()}
    tokenizer = JiebaTokenizer(eval_vocab)
    for record, (shown, labels, answer, sentence) in zip(
        records, mindformers_tnews(tnews_folder / "dev.json", np.random.default_rng(2)), strict=True
    ):
        losses = []
        for label in labels:
            before = len(tokenizer.encode(f"{shown}这是关于{label}的文章："))
            ids = tokenizer.encode(f"{shown}这是关于{label}的文章：{sentence}")[: config.model.seq_length]
            losses.append(-log_probs(weights, config.model, ids)[before - 1 :].mean())
        assert (record["labels"], record["answer"]) == (labels, answer)
        np.testing.assert_allclose(record["scores"], losses, atol=1e-4)
        assert record["prediction"] == labels[int(np.argmin(losses))]


@pytest.mark.parametrize("variant", ["paper", "mindformers"])
def test_answers_depend_neither_on_the_batch_nor_on_when_they_are_made(variant, eval_vocab, cmrc_folder, tmp_path):
    flags = ["--task=cmrc2018", f"--variant={variant}", "--model.seq_length=128"]
    together = evaluate(eval_vocab, cmrc_folder, tmp_path / "one", *flags)
    evaluate(eval_vocab, cmrc_folder, tmp_path / "two", *flags, "--batch_size=1", "--limit=3")
    apart = evaluate(eval_vocab, cmrc_folder, tmp_path / "two", *flags, "--batch_size=1")
    assert [one["prediction"] for one in together] == [one["prediction"] for one in apart]
    assert len({one["prediction"] for one in together}) > 1 and len(together) == 6
    assert {"em", "f1"} <= together[0].keys()


def test_settings_of_generation_on_the_command_line_win(eval_vocab, cmrc_folder, tnews_folder, tmp_path, capsys):
    typed = ["--generation.method=greedy", "--generation.max_new_tokens", "5", "--generation.length_penalty=2"]
    assert typed_generation(typed) == ["max_new_tokens", "method", "length_penalty"]
    made = {}
    for seed in (0, 1):
        flags = ["--task=cmrc2018", "--model.seq_length=128", f"--seed={seed}", *typed]
        config = configuration(eval_vocab, cmrc_folder, tmp_path / str(seed), *flags)
        evaluation.evaluate(config, None, typed_generation(typed))
        lines = (tmp_path / str(seed) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        made[seed] = [json.loads(line)["prediction"] for line in lines]
    told = capsys.readouterr().out
    assert "generation.method is 'greedy', as given, and not the protocol's 'sample'" in told
    assert "generation.max_new_tokens is 5, as given, and not the protocol's 50" in told
    assert made[0] == made[1] and len(set(made[0])) > 1  # greedy: the seed draws nothing
    config = configuration(eval_vocab, tnews_folder, tmp_path / "tnews", "--task=tnews")
    with pytest.raises(InputError, match="--generation.method has no effect: TNEWS scores texts, it generates none"):
        evaluation.evaluate(config, None, ["method"])


def test_the_report_s_figures(eval_vocab, tmp_path, capsys):
    (tmp_path / "dev.jsonl").write_text(
        "".join(
            json.dumps({"masked_text": text + "<mask>", "correct_word": "上霜"}, ensure_ascii=False) + "\n"
            for text in ("床前明月光，疑是地", "疑是地", "举头望明月，低头思故乡，疑是地")
        ),
        encoding="utf-8",
    )
    records = evaluate(eval_vocab, tmp_path, tmp_path / "run", "--task=wplc")
    loss = sum(one["loss"] * one["tokens"] for one in records) / sum(one["tokens"] for one in records)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    [figure] = result["figures"]
    assert figure["value"] == pytest.approx(math.exp(loss)) and figure["interval"] == "bootstrap"
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert f"Metric for dataset wplc is {{'perplexity': {round(math.exp(loss), 4)}}}" in capsys.readouterr().out


BAD = {
    "no task": (["--task="], "give --task"),
    "a task unknown": (["--task=c4"], "--task 'c4' is none of c3, cmrc2018"),
    "no form": (["--task=c3", "--variant=mindformers"], "--task c3 has no --variant mindformers"),
    "no such split": (["--task=c3", "--split=train"], "--split 'train' of C3 is none of dev, test"),
    "no files": (["--task=chid"], "has no dev file of CHID, dev.json; they are published at"),
    "a score of another task": (["--task=tnews", "--score=modelzoo"], "--score modelzoo is how the ModelZoo scores c3"),
    "negative shots": (["--task=c3", "--shots=-1"], "--shots is -1; it must not be negative"),
    "replicas": (["--task=c3", "--parallel.data=2"], "not by parallel.data (2)"),
    "a small vocabulary": (["--task=c3", "--model.vocab_size=100"], "pieces but the model only 100 ids"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags(name, eval_vocab, c3_folder, tmp_path, capsys):
    flags, message = BAD[name]
    with pytest.raises((InputError, SystemExit)) as caught:
        evaluate(eval_vocab, c3_folder, tmp_path / "run", *flags)
    told = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    assert message in told and not (tmp_path / "run").exists()


def test_a_context_that_fills_the_model_is_told(eval_vocab, tmp_path):
    question = {"question": "明月" * 120, "choice": ["春风", "明月光"], "answer": "春风"}
    (tmp_path / "c3-d-dev.json").write_text(json.dumps([[["举头望明月"], [question], "1"]]))
    with pytest.raises(InputError, match="example 0 of C3 leaves nothing to score: its context has"):
        evaluate(eval_vocab, tmp_path, tmp_path / "run", "--task=c3")


def test_the_command_line(eval_vocab, tnews_folder, tmp_path):
    """Bad data gives one line on stderr and exit status 2."""
    folder = tmp_path / "bad"
    folder.mkdir()
    lines = (tnews_folder / "dev.json").read_text().splitlines()
    (folder / "dev.json").write_text("\n".join([*lines[:2], '{"label_desc": "news_sport", "sentence": "a"}']))
    flags = [
        *MODEL,
        f"--data.tokenizer_path={eval_vocab}",
        "--task=tnews",
        f"--task_path={folder}",
        f"--output={tmp_path / 'run'}",
    ]
    status, output, errors = run(ROOT / "eval.py", *flags)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {folder}/dev.json, record 3: 'label_desc' is 'news_sport', none of news_story, ")
    assert errors.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_checkpoint_and_a_server_have_different_folders():
    """The documented order is: first the checkpoint, then the same benchmark through a server."""
    here = configuration("v", "f", "", "--task=C3").output_folder
    there = configuration(
        "v", "f", "", "--task=C3", "--random_weights=false", "--server=http://127.0.0.1:1"
    ).output_folder
    assert (here.name, there.name) == ("c3-dev-paper-0shot", "c3-dev-paper-0shot-server")
