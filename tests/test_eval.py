"""eval.py end to end on tiny models, its scores against scorers that share nothing with it."""

import http.server
import json
import math
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import sentencepiece

import eval as program
import predict
from src.cli import parse
from src.errors import InputError
from src.evaluation_config import flags_of_client
from src.evaluation_models import model_here
from src.pangu_alpha_config import GenerationConfig
from src.parallel.mesh import connect
from src.parallel.plan import Plan
from src.runtimes import load_model
from src.scoring import Request
from src.tokenization_jieba import JiebaTokenizer, words_for_sentencepiece
from tests import numpy_pangu
from tests.conftest import PHRASES, SPECIAL_PIECES
from tests.helpers import ROOT, run

MODEL = ["--random_weights=true", "--mode=tiny", "--model.vocab_size=160", "--model.hidden_size=32",
         "--model.num_layers=2", "--model.seq_length=96", "--model.initializer_range=0.3"]


LABELS = {"news_story": "故事", "news_culture": "文化", "news_sports": "体育", "news_tech": "科技",
          "news_house": "房产", "news_game": "游戏"}


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    """A vocab.model that knows every character of the texts here: candidates that are alike would tie."""
    folder = tmp_path_factory.mktemp("vocab")
    lines = [*PHRASES, "问：男女：答该答案来自对话", "阅读文章", "，。?"]
    lines += [f"这是关于{label}的文章：" for label in LABELS.values()]
    (folder / "corpus.txt").write_text("\n".join(words_for_sentencepiece(line) for line in lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "vocab"), vocab_size=160, hard_vocab_limit=False,
        character_coverage=1.0, user_defined_symbols=SPECIAL_PIECES, minloglevel=2)
    return folder / "vocab.model"


def phrase(draw, number=1):
    return "，".join(draw.choice(PHRASES[:9], number))


@pytest.fixture(scope="module")
def c3_folder(tmp_path_factory):
    """c3-d-dev.json of 12 dialogues, with two to four choices; some longer than the model's 96 tokens."""
    draw = np.random.default_rng(0)
    instances = []
    for number in range(12):
        questions = []
        for _ in range(1 + number % 2):
            choices = draw.choice(PHRASES, 2 + number % 3, replace=False).tolist()
            questions.append({"question": phrase(draw) + "?", "choice": choices,
                              "answer": choices[number % 2]})
        sentences = [f"男：{phrase(draw)}。", f"女：{phrase(draw, 1 + 3 * (number % 4))}。"]
        instances.append([sentences, questions, f"{number}-1"])
    folder = tmp_path_factory.mktemp("c3")
    for name, some in (("c3-d-dev.json", instances[:8]), ("c3-m-dev.json", instances[8:]),
                       ("c3-d-train.json", instances[:3])):
        (folder / name).write_text(json.dumps(some, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tnews_folder(tmp_path_factory):
    draw = np.random.default_rng(1)
    labels = list(LABELS)
    lines = [json.dumps({"label": "100", "label_desc": labels[number % 6], "sentence": phrase(draw, 2), "keywords": ""})
             for number in range(20)]
    folder = tmp_path_factory.mktemp("tnews")
    for name in ("dev.json", "train.json"):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def configuration(vocab, folder, output, *flags):
    return parse(program.EvalConfig, "eval.py", [*MODEL, f"--data.tokenizer_path={vocab}", f"--task_path={folder}",
                                                 f"--output={output}", *flags])


def evaluate(vocab, folder, output, *flags):
    """The finished examples of a run."""
    program.evaluate(configuration(vocab, folder, output, *flags), None)
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def log_probs(weights, config, ids):
    """float64 (n - 1,): of each token after the first, given those before."""
    ids = np.array([ids])
    size = ids.shape[1] - 1
    logits = numpy_pangu.logits(weights, config, ids[:, :-1], np.arange(size)[None], np.tril(np.ones((1, size, size))))
    return -numpy_pangu.token_losses(logits, ids)[0]


def numpy_c3(path, vocab, config, score):
    """Of each question its choices' scores: one text at a time, in float64."""
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
                if score == "modelzoo":  # its labels are the tokens shifted by one, then a pad; the mask is on inputs
                    scores.append(-log_probs(weights, config.model, [*ids, pad])[before:].sum() / length)
                else:
                    scores.append(-log_probs(weights, config.model, ids)[before - 1:].mean())
            yield question, scores


@pytest.mark.parametrize("score", ["mean", "modelzoo"])
def test_c3_is_scored_as_by_an_independent_scorer(score, vocab, c3_folder, tmp_path, capsys):
    records = evaluate(vocab, c3_folder, tmp_path / "run", "--task=c3", f"--score={score}", "--batch_size=2")
    config = configuration(vocab, c3_folder, tmp_path, "--task=c3")
    truth = [one for name in ("c3-d-dev.json", "c3-m-dev.json")
             for one in numpy_c3(c3_folder / name, vocab, config, score)]
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


def test_shots_come_before_and_change_scores(vocab, c3_folder, tmp_path):
    flags = ["--task=c3", "--limit=4", "--model.seq_length=256"]
    zero = evaluate(vocab, c3_folder, tmp_path / "zero", *flags)
    two = evaluate(vocab, c3_folder, tmp_path / "two", *flags, "--shots=2")
    other = evaluate(vocab, c3_folder, tmp_path / "other", *flags, "--shots=2", "--seed=1")
    assert zero[0]["scores"] != two[0]["scores"] != other[0]["scores"]


def test_a_killed_run_goes_on(vocab, tnews_folder, tmp_path, capsys):
    whole = evaluate(vocab, tnews_folder, tmp_path / "whole", "--task=tnews")
    output = tmp_path / "killed"
    evaluate(vocab, tnews_folder, output, "--task=tnews", "--limit=7")
    file = output / "predictions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = json.loads(lines[2]) | {"prediction": "kept", "top1_acc": 1.0}
    file.write_text(lines[4] + json.dumps(changed) + "\n" + lines[0] + lines[1][:30], encoding="utf-8")
    capsys.readouterr()
    resumed = evaluate(vocab, tnews_folder, output, "--task=tnews")
    assert "20 examples" in (told := capsys.readouterr().out) and "3 of them from an earlier run" in told
    assert resumed.pop(2)["prediction"] == "kept"
    whole.pop(2)
    assert [record["number"] for record in resumed] == [number for number in range(20) if number != 2]
    for one, other in zip(resumed, whole, strict=True):
        assert (one["labels"], one["prediction"]) == (other["labels"], other["prediction"])
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)


def test_predictions_of_other_settings_are_not_mixed(vocab, tnews_folder, tmp_path):
    evaluate(vocab, tnews_folder, tmp_path, "--task=tnews", "--limit=2")
    with pytest.raises(InputError, match="holds predictions with seed 0, not 3; give another --output"):
        evaluate(vocab, tnews_folder, tmp_path, "--task=tnews", "--limit=2", "--seed=3")


def mindformers_tnews(path, rng):
    """The examples of MindFormers' protocol, written again from its description: shown headline, labels, sentence."""
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


def test_tnews_in_mindformers_form(vocab, tnews_folder, tmp_path):
    flags = ["--task=tnews", "--variant=mindformers", "--shots=1"]
    records = evaluate(vocab, tnews_folder, tmp_path, *flags)
    config = configuration(vocab, tnews_folder, tmp_path, *flags)
    weights = {parameter.name: parameter.asnumpy() for parameter in load_model(config.model, None).get_parameters()}
    tokenizer = JiebaTokenizer(vocab)
    for record, (shown, labels, answer, sentence) in zip(
            records, mindformers_tnews(tnews_folder / "dev.json", np.random.default_rng(2)), strict=True):
        losses = []
        for label in labels:
            before = len(tokenizer.encode(f"{shown}这是关于{label}的文章："))
            ids = tokenizer.encode(f"{shown}这是关于{label}的文章：{sentence}")[:config.model.seq_length]
            losses.append(-log_probs(weights, config.model, ids)[before - 1:].mean())
        assert (record["labels"], record["answer"]) == (labels, answer)
        np.testing.assert_allclose(record["scores"], losses, atol=1e-4)
        assert record["prediction"] == labels[int(np.argmin(losses))]


@pytest.fixture(scope="module")
def cmrc_folder(tmp_path_factory):
    draw = np.random.default_rng(2)
    articles = [{"paragraphs": [{"context": phrase(draw, 3), "id": str(number), "qas": [
        {"question": phrase(draw) + "?", "id": f"{number}-{i}", "answers": [{"text": phrase(draw), "answer_start": 0}]}
        for i in range(2)]}]} for number in range(3)]
    folder = tmp_path_factory.mktemp("cmrc")
    (folder / "dev.json").write_text(json.dumps({"version": "v1.0", "data": articles}))
    return folder


@pytest.mark.parametrize("variant", ["paper", "mindformers"])
def test_answers_depend_neither_on_the_batch_nor_on_when_they_are_made(variant, vocab, cmrc_folder, tmp_path):
    flags = ["--task=cmrc2018", f"--variant={variant}", "--model.seq_length=128"]
    together = evaluate(vocab, cmrc_folder, tmp_path / "one", *flags)
    evaluate(vocab, cmrc_folder, tmp_path / "two", *flags, "--batch_size=1", "--limit=3")
    apart = evaluate(vocab, cmrc_folder, tmp_path / "two", *flags, "--batch_size=1")
    assert [one["prediction"] for one in together] == [one["prediction"] for one in apart]
    assert len({one["prediction"] for one in together}) > 1 and len(together) == 6
    assert {"em", "f1"} <= together[0].keys()


def test_the_report_s_figures(vocab, tmp_path, capsys):
    (tmp_path / "dev.jsonl").write_text("".join(
        json.dumps({"masked_text": text + "<mask>", "correct_word": "上霜"}, ensure_ascii=False) + "\n"
        for text in ("床前明月光，疑是地", "疑是地", "举头望明月，低头思故乡，疑是地")), encoding="utf-8")
    records = evaluate(vocab, tmp_path, tmp_path / "run", "--task=wplc")
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
    "negative shots": (["--task=c3", "--shots=-1"], "--shots is -1; it must be at least 0"),
    "replicas": (["--task=c3", "--parallel.data=2"], "not by parallel.data (2)"),
    "a small vocabulary": (["--task=c3", "--model.vocab_size=100"], "the tokenizer has 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags(name, vocab, c3_folder, tmp_path, capsys):
    flags, message = BAD[name]
    with pytest.raises((InputError, SystemExit)) as caught:
        evaluate(vocab, c3_folder, tmp_path / "run", *flags)
    told = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)
    assert message in told and not (tmp_path / "run").exists()


def test_a_context_that_fills_the_model_is_told(vocab, tmp_path):
    question = {"question": "明月" * 120, "choice": ["春风", "明月光"], "answer": "春风"}
    (tmp_path / "c3-d-dev.json").write_text(json.dumps([[["举头望明月"], [question], "1"]]))
    with pytest.raises(InputError, match="example 0 of C3 leaves nothing to score: its context has"):
        evaluate(vocab, tmp_path, tmp_path / "run", "--task=c3")


def test_the_command_line(vocab, tnews_folder, tmp_path):
    """Exit status, and nothing but one line for bad data."""
    folder = tmp_path / "bad"
    folder.mkdir()
    lines = (tnews_folder / "dev.json").read_text().splitlines()
    (folder / "dev.json").write_text("\n".join([*lines[:2], '{"label_desc": "news_sport", "sentence": "a"}']))
    flags = [*MODEL, f"--data.tokenizer_path={vocab}", "--task=tnews", f"--task_path={folder}",
             f"--output={tmp_path / 'run'}"]
    status, output, errors = run(ROOT / "eval.py", *flags)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {folder}/dev.json, record 3: 'label_desc' is 'news_sport', none of news_story, ")
    assert errors.count("\n") == 1 and not (tmp_path / "run").exists()


class Serving(http.server.BaseHTTPRequestHandler):
    """MindSpore Serving's REST interface, as docs/serving.md has it, before a model in this process."""

    def do_POST(self):
        instances = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["instances"]
        method = {"/model/pangu:score": self.score, "/model/pangu:predict": self.predict}[self.path]
        reply = json.dumps({"instances": [method(**instance) for instance in instances]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def score(self, input_ids, start):
        [(_, [log_probs])] = self.server.scorer.score([[Request(input_ids, start)]])
        return {"log_probs": log_probs.tolist()}

    def predict(self, input_ids, max_generate_length, number, **settings):
        config = GenerationConfig(max_new_tokens=max_generate_length, **settings)
        [(_, text)] = self.server.answerer.answer([(number, input_ids)], config)
        return {"output_sentence": text, "finish_reason": "end"}

    def log_message(self, *message):
        """Nothing."""


@contextmanager
def serving(handler, **what):
    """The address of a server, until the end of the block."""
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        vars(server).update(what)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def through_server(vocab, folder, address):
    """predict.py's command line, with the ModelZoo's names of flags."""
    [_, *model] = MODEL
    return [*model, "--enable_client", f"--server={address}", f"--tokenizer_path={vocab}", f"--eval_data_url={folder}"]


@pytest.mark.parametrize("task", ["c3", "cmrc2018"])
def test_a_server_says_what_a_model_says(task, vocab, c3_folder, cmrc_folder, tmp_path, monkeypatch):
    folder, length = {"c3": c3_folder, "cmrc2018": cmrc_folder}[task], "--model.seq_length=128"
    here = evaluate(vocab, folder, tmp_path / "here", f"--task={task}", length)
    config = configuration(vocab, folder, tmp_path, f"--task={task}", length)
    scorer, answerer = model_here(config, None, connect(Plan(num_layers=2)), JiebaTokenizer(vocab))
    with serving(Serving, scorer=scorer, answerer=answerer) as address:
        monkeypatch.setattr("sys.argv", ["predict.py", *through_server(vocab, folder, address), length,
                                         f"--eval_task={task}", f"--output={tmp_path / 'there'}"])
        predict.main()
    there = (tmp_path / "there" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    for one, other in zip(here, map(json.loads, there), strict=True):
        np.testing.assert_allclose(one.pop("scores", 0), other.pop("scores", 0), atol=1e-5)
        assert one == other


class Refusing(Serving):
    """Says that it has no graph to score with."""

    def score(self, input_ids, start):
        return {"error_code": 1, "error_msg": "no graph to score with was exported"}


class Short(Serving):
    """Scores too few tokens."""

    def score(self, input_ids, start):
        return {"log_probs": [-1.0]}


class Stranger(Serving):
    """Something else that listens there."""

    def do_POST(self):
        self.send_error(404, "Not here")


@pytest.mark.parametrize("handler, message", [
    (Refusing, "answers to score: .*no graph to score with was exported"),
    (Short, "answers to score: 1 log_probs for [0-9]+ tokens"), (Stranger, "answers to score: .*404")])
def test_what_a_server_can_t_do_is_told(handler, message, vocab, c3_folder, tmp_path):
    with serving(handler) as address, pytest.raises(InputError, match=f"--server {address} {message}"):
        program.main(flags_of_client([*through_server(vocab, c3_folder, address), "--eval_task=c3",
                                      f"--output={tmp_path / 'run'}"]))
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("address, message", [("127.0.0.1:1500", "is no address such as http://127.0.0.1:1500"),
                                              ("http://127.0.0.1:9", "does not answer .* start it: bash")])
def test_no_server(address, message, vocab, c3_folder, tmp_path):
    with pytest.raises(InputError, match=f"--server {address} {message}"):
        program.main(flags_of_client([*through_server(vocab, c3_folder, address), "--eval_task=c3",
                                      f"--output={tmp_path / 'run'}"]))


def test_the_server_of_this_machine_is_asked_if_none_is_named():
    flags = flags_of_client(["--enable_client=True", "--eval_task", "c3", "--limit=2"])
    assert flags == ["--task", "c3", "--limit=2", "--server", "http://127.0.0.1:1500"]


def test_settings_of_a_run():
    assert configuration("v", "f", "", "--task=C3").output_folder.name == "c3-dev-paper-0shot"
