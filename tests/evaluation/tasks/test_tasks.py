"""Each benchmark's published form, as prompts; and what is said of files that are of another form."""

import json

import pytest

from src.common.errors import InputError
from src.evaluation.tasks import registry
from src.evaluation.tasks.task import Choice, Prompt, Reading, Task


def jsonl(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


CLOZE = """1 ||| 春风 又 绿 江南岸
2 ||| 明月 何时 照 我 还
3 ||| XXXXX 何时 照 我 还
<qid_1> ||| 举头 望 XXXXX ， 低头 ||| 明月

1 ||| 疑是 地上霜
<qid_2> ||| XXXXX 是 霜 ||| 地上
"""
SQUAD = {
    "version": "v1.0",
    "data": [
        {
            "paragraphs": [
                {
                    "context": "成都是四川的省会。",
                    "id": "1",
                    "qas": [
                        {
                            "question": "省会是哪里？",
                            "id": "1-1",
                            "answers": [{"text": "成都", "answer_start": 0}, {"text": "成都市", "answer_start": 0}],
                        }
                    ],
                }
            ]
        }
    ],
}
HFL = [
    {
        "context_id": "D",
        "context_text": "成都是四川的省会。",
        "title": "成都",
        "qas": [{"query_text": "省会是哪里？", "query_id": "D-1", "answers": ["成都", 147.0, 4.9]}],
    }
]
ARTICLE = Prompt("阅读文章：成都是四川的省会。\n问：省会是哪里？\n答：", ("成都", "成都市"))
CLOZES = [Prompt("春风又绿江南岸明月何时照我还举头望", ["明月"]), Prompt("疑是地上霜", ["地上"])]
CHID = {"content": ["他#idiom01#地走，又#idiom02#。"], "candidates": ["一心一意", "三心二意", "四面八方"]}

# Task, file, its text, other files, the examples.
FORMS = {
    "c3": (
        "c3",
        "c3-d-dev.json",
        json.dumps([[["男：好。", "女：走。"], [{"question": "谁?", "choice": ["他", "她"], "answer": "她"}], "1-1"]]),
        {},
        [
            Choice(
                [
                    ("问：谁?\n答：他\n该答案来自对话：", "男：好。女：走。"),
                    ("问：谁?\n答：她\n该答案来自对话：", "男：好。女：走。"),
                ],
                ["他", "她"],
                "她",
            )
        ],
    ),
    "cmrc2018": ("cmrc2018", "dev.json", json.dumps(SQUAD), {}, [ARTICLE]),
    "cmrc2018 of its authors": (
        "cmrc2018",
        "cmrc2018_dev.json",
        json.dumps(HFL),
        {},
        [Prompt(ARTICLE.text, ("成都", "147", "4.9"))],
    ),
    "drcd": ("drcd", "DRCD_dev.json", json.dumps(SQUAD), {}, [ARTICLE]),
    "dureader 2.0": (
        "dureader",
        "search.dev.json",
        jsonl(
            {
                "question": "省会是哪里？",
                "answers": ["成都"],
                "documents": [
                    {"is_selected": False, "paragraphs": ["别的"]},
                    {"is_selected": True, "paragraphs": ["成都。", "后面"]},
                ],
            },
            {"question": "没有", "answers": [], "documents": []},
        ),
        {},
        [Prompt("阅读文章：成都。\n问：省会是哪里？\n答：", ["成都"])],
    ),
    "dureader robust": ("dureader", "dev.json", json.dumps(SQUAD), {}, [ARTICLE]),
    "webqa": (
        "webqa",
        "me_test.ann.json",
        json.dumps(
            {
                "Q1": {
                    "question": "省会?",
                    "evidences": {
                        "e0": {"answer": ["no_answer"], "evidence": "无"},
                        "e1": {"answer": ["成都"], "evidence": "成都"},
                        "e2": {"answer": ["成都"], "evidence": "成都"},
                    },
                },
                "Q2": {"question": "无?", "evidences": {"e0": {"answer": ["no_answer"], "evidence": ""}}},
            }
        ),
        {},
        [Prompt("问：省会?\n答：", ["成都"])],
    ),
    "cmrc2017": ("cmrc2017", "valid.doc_query", CLOZE, {}, CLOZES),
    "cmrc2017, answers apart": (
        "cmrc2017",
        "test.doc_query",
        CLOZE.replace("低头 ||| 明月", "低头").replace("是 霜 ||| 地上", "是 霜"),
        {"test.doc_query.answer": "<qid_1> ||| 明月\n<qid_2> ||| 地上\n"},
        CLOZES,
    ),
    "pd": ("pd", "pd.test", CLOZE, {}, CLOZES),
    "cft": ("cft", "cft.test.human", CLOZE, {}, CLOZES),
    "cmrc2019": (
        "cmrc2019",
        "dev.json",
        json.dumps(
            {
                "data": [
                    {
                        "context": "从前[BLANK1]后来[BLANK2]。",
                        "choices": ["有山", "有水"],
                        "context_id": "1",
                        "answers": [1, 0],
                    }
                ]
            }
        ),
        {},
        [
            Choice([("从前", "有山后来。"), ("从前", "有水后来。")], ["0: 有山", "1: 有水"], "1: 有水"),
            Choice([("从前后来", "有山。"), ("从前后来", "有水。")], ["0: 有山", "1: 有水"], "0: 有山"),
        ],
    ),
    "chid": (
        "chid",
        "dev.json",
        jsonl(CHID),
        {"dev_answer.json": json.dumps({"#idiom01#": 0, "#idiom02#": 2})},
        [
            Choice([("", f"他{idiom}地走，又。") for idiom in CHID["candidates"]], CHID["candidates"], "一心一意"),
            Choice([("", f"他地走，又{idiom}。") for idiom in CHID["candidates"]], CHID["candidates"], "四面八方"),
        ],
    ),
    "afqmc": (
        "afqmc",
        "dev.json",
        jsonl({"sentence1": "怎么还", "sentence2": "如何还", "label": "1"}),
        {},
        [
            Choice(
                [("下面两个句子语义不同：", "怎么还。如何还"), ("下面两个句子语义相同：", "怎么还。如何还")],
                ["不同", "相同"],
                "相同",
            )
        ],
    ),
    "ocnli": (
        "ocnli",
        "dev.json",
        jsonl(
            {"sentence1": "下雨", "sentence2": "晴天", "label": "contradiction"},
            {"sentence1": "甲", "sentence2": "乙", "label": "-"},
        ),
        {},
        [
            Choice(
                [("", "下雨？对，晴天"), ("", "下雨？或许，晴天"), ("", "下雨？错，晴天")], ["对", "或许", "错"], "错"
            )
        ],
    ),
    "cmnli": (
        "cmnli",
        "dev.json",
        jsonl({"sentence1": "下雨", "sentence2": "湿", "label": "entailment"}),
        {},
        [Choice([("", "下雨？对，湿"), ("", "下雨？或许，湿"), ("", "下雨？错，湿")], ["对", "或许", "错"], "对")],
    ),
    "csl": (
        "csl",
        "dev.json",
        jsonl({"id": 1, "abst": "论文", "keyword": ["甲", "乙"], "label": "0"}),
        {},
        [
            Choice(
                [("", "摘要：论文，关键词：甲，乙不是真实关键词"), ("", "摘要：论文，关键词：甲，乙是真实关键词")],
                ["不是", "是"],
                "不是",
            )
        ],
    ),
    "wsc2020": (
        "wsc2020",
        "dev.json",
        jsonl(
            {
                "target": {"span2_index": 4, "span1_index": 0, "span1_text": "小明", "span2_text": "他"},
                "idx": 0,
                "text": "小明说，他来了",
                "label": "true",
            }
        ),
        {},
        [Choice([("", "小明说，小明来了"), ("", "小明说，他来了")], ["true", "false"], "true")],
    ),
    "wplc": (
        "wplc",
        "dev.jsonl",
        jsonl({"masked_text": "床前明月<mask>。", "correct_word": "光"}),
        {},
        [Choice([("床前明月", "光")], ["光"], "光")],
    ),
}


def written(folder, file, text, others=None):
    for name, content in {file: text, **(others or {})}.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / file


def listed(example):
    return [list(value) if isinstance(value, tuple) else value for value in vars(example).values()]


@pytest.mark.parametrize("form", FORMS)
def test_published_forms(form, tmp_path):
    name, file, text, others, expected = FORMS[form]
    path, task = written(tmp_path, file, text, others), registry.find_task(name)
    assert any(path in task.find(tmp_path, split) for split in task.files if file in task.files[split])
    assert [listed(example) for example in task.read(path, Reading())] == [listed(example) for example in expected]


def test_demonstrations_show_the_right_answer(tmp_path):
    choice = Choice([("问：谁?\n答：他\n", "来了"), ("问：谁?\n答：她\n", "来了")], ["他", "她"], "她")
    assert choice.demonstration == "问：谁?\n答：她\n来了"
    assert ARTICLE.demonstration == "阅读文章：成都是四川的省会。\n问：省会是哪里？\n答：成都"


@pytest.mark.parametrize(
    ("name", "label", "context"),
    [("tnews", "label_desc", "这是关于{}的文章："), ("iflytek", "label_des", "这是关于{}的应用程序：")],
)
def test_three_wrong_labels_are_drawn(name, label, context, tmp_path):
    """By seed and number alone, so that a part of the file has the same ones."""
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
    """500 articles, their first paragraph, the first answer; one article or five sentences drawn by numpy's old
    generator with seed 666, both for each question."""
    import numpy as np

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
    "half a file": ("c3", "c3-d-dev.json", '[[["男"], [{"questi', "is no JSON file: "),
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
        "record 2 is no JSON: ",
    ),
    "a list on a line": (
        "tnews",
        "dev.json",
        '{"label_desc": "news_car", "sentence": "a"}\n["b"]\n',
        'record 2 is no JSON object but ["b"]',
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
