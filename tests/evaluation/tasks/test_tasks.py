"""Random labels and demonstrations, MindFormers' protocol, and error messages for bad files."""

import json

import numpy as np
import pytest

from src.common.errors import InputError
from src.evaluation.evaluate import read_items
from src.evaluation.tasks import registry
from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Reading, Task
from tests.support.task_files import CHID, jsonl, written


@pytest.mark.parametrize(
    ("name", "label", "context"),
    [("tnews", "label_desc", "这是关于{}的文章："), ("iflytek", "label_des", "这是关于{}的应用程序：")],
)
def test_three_wrong_labels_are_drawn(name, label, context, tmp_path):
    """The draw depends on the seed and the example's number, so a part of the file has the same labels."""
    names = ["news_story", "news_culture", "news_sports", "news_tech", "news_house", "news_game"]
    lines = [{label: names[number % 6], "sentence": f"第{number}句"} for number in range(30)]
    task, path = registry.find_task(name), written(tmp_path, "dev.json", jsonl(*lines))
    examples = list(task.read(path, Reading(seed=1)))
    for number, example in enumerate(examples):
        assert len(set(example.labels)) == len(example.labels) == 4 and example.answer in example.labels
        assert example.candidates == [(context.format(one), f"第{number}句") for one in example.labels]
    assert len({tuple(example.labels) for example in examples}) > 20
    assert {example.labels.index(example.answer) for example in examples} == {0, 1, 2, 3}
    assert list(task.read(path, Reading(seed=1))) == examples != list(task.read(path, Reading(seed=2)))
    part = written(tmp_path, "part.json", jsonl(*lines[:12]))
    assert [one.labels for one in task.read(part, Reading(seed=1))] == [one.labels for one in examples[:12]]


def articles(count, length=20):
    return {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": f"第{number}篇讲成都。" + "好" * length,
                        "qas": [{"question": f"讲什么{number}？", "answers": [{"text": "成都"}, {"text": "市"}]}],
                    },
                    {"context": "第二段", "qas": [{"question": "不问", "answers": [{"text": "段"}]}]},
                ]
            }
            for number in range(count)
        ]
    }


def test_cmrc2018_in_mindformers_form(tmp_path):
    """MindFormers takes 500 articles, their first paragraph, and the first answer.

    numpy's old generator with seed 666 draws one article and five sentences for each question.
    """
    path = written(tmp_path, "dev.json", json.dumps(articles(502)), {"train.json": json.dumps(articles(9))})
    task = registry.find_task("cmrc2018", "mindformers")
    plain = list(task.read(path, Reading()))
    assert len(plain) == 500 and list(plain[0].answers) == ["成都"]
    assert plain[3].text == f"阅读文章：第3篇讲成都。{'好' * 20}\n问：讲什么3？\n答："
    draw = np.random.RandomState(666)
    drawn = [(draw.choice(9, 1), draw.choice(9, 5)) for _ in range(3)]
    one, five = (list(task.read(path, Reading(shots=shots)))[2] for shots in (1, 5))
    whole = "阅读文章：第{0}篇讲成都。" + "好" * 20 + "\n问：讲什么{0}？\n答：成都\n"
    assert one.text == whole.format(drawn[2][0][0]) + plain[2].text
    sentence = "阅读文章：第{0}篇讲成都。\n问：讲什么{0}？\n答：成都\n"
    assert five.text == "".join(sentence.format(place) for place in drawn[2][1]) + plain[2].text
    with pytest.raises(InputError, match="has --shots 0, 1 or 5, not 2"):
        list(task.read(path, Reading(shots=2)))


def test_every_task_is_of_one_shape():
    assert len(set(registry.NAMES)) == 18
    for name in registry.NAMES:
        task = registry.find_task(name.upper())
        assert isinstance(task, Task) and task.home.startswith("https://") and task.files["dev"]
        assert set(task.reported) <= set(task.metrics)
        assert (task.judge is not None) == (task.kind == "generation") == bool(task.generation)
    for name in ("tnews", "cmrc2018"):
        assert registry.find_task(name, "mindformers").own_shots


ONE = {"sentence1": "甲", "sentence2": "乙", "label": "0"}
BAD = {
    "half a file": ("c3", "c3-d-dev.json", '[[["男"], [{"questi', "is not JSON: "),
    "another dataset's file": ("c3", "c3-d-dev.json", jsonl(ONE), "is not a list of C3's [sentences, questions, name]"),
    "a record of another form": (
        "c3",
        "c3-d-dev.json",
        json.dumps([[["a"], [], "1"], "b"]),
        "c3-d-dev.json, record 2 is not C3's",
    ),
    "an answer that is no choice": (
        "c3",
        "c3-d-dev.json",
        json.dumps([[["a"], [{"question": "q", "choice": ["x"], "answer": "y"}], "1"]]),
        "record 1: the answer 'y' is none of",
    ),
    "an unknown label": (
        "afqmc",
        "dev.json",
        jsonl(ONE, ONE | {"label": "2"}),
        "record 2: 'label' is '2', none of 0, 1",
    ),
    "no label": (
        "ocnli",
        "dev.json",
        jsonl({"sentence1": "甲", "sentence2": "乙"}),
        "record 1 has no 'label'; it has sentence1, sentence2",
    ),
    "a broken line": (
        "csl",
        "dev.json",
        jsonl({"abst": "a", "keyword": ["k"], "label": "1"}) + '{"abst"',
        "record 2 is not JSON: ",
    ),
    "a list on a line": (
        "tnews",
        "dev.json",
        '{"label_desc": "news_car", "sentence": "a"}\n["b"]\n',
        'record 2 is not a JSON object but ["b"]',
    ),
    "nothing": ("afqmc", "dev.json", "\n", "holds no records"),
    "a text that is a number": (
        "iflytek",
        "dev.json",
        jsonl(*({"label_des": str(i), "sentence": i} for i in range(5))),
        "record 1: 'sentence' is 0, not a text",
    ),
    "too few labels": ("iflytek", "dev.json", jsonl({"label_des": "a", "sentence": "b"}), "has only 1 labels"),
    "no answer": (
        "cmrc2018",
        "dev.json",
        json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}),
        "'data' 1, 'paragraphs' 1, 'qas' 1 has no answers",
    ),
    "no questions": ("drcd", "dev.json", json.dumps({"data": []}), "holds no questions"),
    "no idiom": (
        "chid",
        "dev.json",
        jsonl(CHID),
        "dev_answer.json has no '#idiom02#'; it has #idiom01#",
        {"dev_answer.json": '{"#idiom01#": 1}'},
    ),
    "a blank outside": (
        "cmrc2019",
        "dev.json",
        json.dumps({"data": [{"context": "从前[BLANK1]", "choices": ["a"], "answers": [0, 0]}]}),
        "'data' 1: blank 2 is missing in 'context'",
    ),
    "a pronoun elsewhere": (
        "wsc2020",
        "dev.json",
        jsonl(
            {
                "target": {"span2_index": 0, "span1_text": "小明", "span2_text": "他"},
                "text": "小明说，他来了",
                "label": "true",
            }
        ),
        "record 1: 'span2_text' is '他', but 'text' has '小' at 0",
    ),
    "no mask": (
        "wplc",
        "dev.json",
        jsonl({"masked_text": "床前明月光", "correct_word": "光"}),
        "'masked_text' has no <mask>",
    ),
    "no answer apart": ("pd", "pd.test", "1 ||| a\n<qid_1> ||| b XXXXX\n", "line 2: question <qid_1> has no answer"),
    "a line of something else": ("cmrc2017", "valid.txt", "1 ||| a\nhello\n", "line 2 is not `number ||| sentence`"),
    "no evidence": (
        "webqa",
        "me_test.ann.json",
        json.dumps({"Q1": {"question": "q"}}),
        "record 'Q1' has no 'evidences'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, tmp_path):
    task, file, text, message, *others = BAD[name]
    path = written(tmp_path, file, text, *others)
    with pytest.raises(InputError) as caught:
        list(registry.find_task(task).read(path, Reading()))
    assert message in str(caught.value) and str(path.parent) in str(caught.value) and "\n" not in str(caught.value)


def test_files_are_found_where_they_are_published(tmp_path):
    (tmp_path / "data").mkdir()
    task = registry.find_task("c3")
    for name in ("c3-d-dev.json", "c3-m-dev.json", "c3-d-train.json"):
        (tmp_path / "data" / name).touch()
    assert [path.name for path in task.find(tmp_path, "dev")] == ["c3-d-dev.json", "c3-m-dev.json"]
    assert task.find(tmp_path / "data/c3-m-dev.json", "dev") == [tmp_path / "data/c3-m-dev.json"]
    assert [path.name for path in task.find_training(tmp_path / "data/c3-m-dev.json")] == ["c3-d-train.json"]
    with pytest.raises(InputError, match="has no test file of C3, c3-d-test.json or c3-m-test.json; they are"):
        task.find(tmp_path, "test")


def test_only_newlines_end_a_record(tmp_path):
    file = written(tmp_path, "records.json", jsonl({"a": "x\u2028y\x85z"}, {"a": "2"}).replace("\n", "\r\n"))
    assert [record.text("a") for record in records(file)] == ["x\u2028y\x85z", "2"]


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["", " "], "question 1 has no answer"),
        (["FAKE_ANSWER_1", "FAKE_ANSWER_2"], "no answer is in its text (the first is 'FAKE_ANSWER_1')"),
    ],
)
@pytest.mark.parametrize("name", ["cmrc2018", "drcd"])
def test_a_split_without_answers_is_refused(name, answers, told, tmp_path):
    """The answers of a public test set are empty or placeholders, and would give EM 0 as if the model were wrong."""
    task = registry.find_task(name)
    entries = [{"text": answer, "answer_start": -1} for answer in answers]
    questions = [{"question": "四川的省会？", "id": "1", "answers": entries}]
    articles = [{"paragraphs": [{"context": "四川的省会是成都。", "id": "1", "qas": questions}]}]
    path = tmp_path / task.files["test"][0]
    path.write_text(json.dumps({"data": articles}))
    with pytest.raises(InputError) as caught:
        read_items(task, tmp_path, "test", Reading(), 0)
    remedy = f"--split test of {task.title} is published without answers, so it can't be scored: take --split dev"
    assert str(caught.value) == f"{path.name}: {told}; {remedy}"
    entries[0]["text"] = "成都"
    path.write_text(json.dumps({"data": articles}))
    assert [item.example.answers[0] for item in read_items(task, tmp_path, "test", Reading(), 0)] == ["成都"]
