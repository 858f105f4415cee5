"""Each benchmark's published file format, and the examples that are read from it."""

import json

import pytest

from src.evaluation.tasks import registry
from src.evaluation.tasks.task import Choice, Prompt, Reading
from tests.support.task_files import CHID, jsonl, written

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

# Task, file name, text of the file, other files, expected examples.
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
