"""Fixtures that several test files share."""

import json
import random
import subprocess

import numpy as np
import pytest
from xdist.scheduler import LoadFileScheduling

from src.common.memory import freeze_objects
from src.evaluation.tasks.tnews import LABELS as TNEWS_LABELS
from src.tokenization_jieba import words_for_sentencepiece
from tests.support.programs import ROOT, python_of
from tests.support.vocabularies import train_vocab

PHRASES = [
    "春风又绿江南岸",
    "明月何时照我还",
    "今天是一个好天气",
    "小明背起书包去上学",
    "突然刮起了狂风暴雨",
    "床前明月光",
    "疑是地上霜",
    "举头望明月",
    "低头思故乡",
    "the quick brown fox",
    "jumps over 13 lazy dogs",
]
LABELS = {
    "news_story": "故事",
    "news_culture": "文化",
    "news_sports": "体育",
    "news_tech": "科技",
    "news_house": "房产",
    "news_game": "游戏",
}


class _ByFile(LoadFileScheduling):
    """Each worker runs all tests of a file, which share compiled models.

    All tests of tests/distributed are for one worker: they share runs, and each starts several processes.
    """

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "tests/distributed" if file.startswith("tests/distributed/") else file


def pytest_xdist_make_scheduler(config, log):
    return _ByFile(config, log)


def pytest_collection_finish():
    freeze_objects()


@pytest.fixture(scope="session")
def serving_python():
    """Return the Python of MindSpore Serving's environment, which is made if it is missing."""
    done = subprocess.run(["bash", ROOT / "scripts/setup_env.sh", "serving"], capture_output=True, text=True)
    if "no Python 3.9" in done.stderr:
        pytest.skip("no Python 3.9 here, which MindSpore Serving needs")
    assert done.returncode == 0, done.stderr
    return ROOT / ".venv-serving/bin/python"


@pytest.fixture(scope="session")
def huggingface_python():
    """Return the Python of the environment with PyTorch and Transformers, which is made if it is missing."""
    return python_of("huggingface", "PyTorch")


def phrase(draw, number=1):
    return "，".join(draw.choice(PHRASES[:9], number))


@pytest.fixture(scope="session")
def chinese_text():
    """Return a function that makes a text from a seed and a number of lines: phrases, and some blank lines."""

    def make(seed: int, num_lines: int) -> str:
        draw = random.Random(seed)
        return "".join(
            "\n" if draw.random() < 0.2 else "，".join(draw.choices(PHRASES, k=draw.randint(1, 6))) + "。\n"
            for _ in range(num_lines)
        )

    return make


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory, chinese_text):
    """Return the path of a vocab.model of at most 160 pieces. Its special pieces have the ids of the release."""
    return train_vocab(tmp_path_factory.mktemp("vocab"), chinese_text(0, 500))


@pytest.fixture(scope="session")
def other_vocab(tmp_path_factory, chinese_text):
    """Return the path of another vocab.model with as many pieces as `tiny_vocab`."""
    return train_vocab(tmp_path_factory.mktemp("other_vocab"), chinese_text(1, 400))


@pytest.fixture(scope="session")
def eval_vocab(tmp_path_factory):
    """Return the path of a vocab.model that knows the characters of the benchmarks below and of all TNEWS labels.

    Without this, candidates that differ in unknown characters only would have equal scores.
    """
    folder = tmp_path_factory.mktemp("vocab")
    lines = [*PHRASES, "问：男女：答该答案来自对话", "阅读文章", "，。?"]
    lines += [f"这是关于{label}的文章：" for label in TNEWS_LABELS.values()]
    return train_vocab(folder, "\n".join(words_for_sentencepiece(line) for line in lines * 20))


@pytest.fixture(scope="session")
def c3_folder(tmp_path_factory):
    """Write C3 files with 12 dialogues and two to four choices. Some are longer than the model's 96 tokens."""
    draw = np.random.default_rng(0)
    instances = []
    for number in range(12):
        questions = []
        for _ in range(1 + number % 2):
            choices = draw.choice(PHRASES, 2 + number % 3, replace=False).tolist()
            questions.append({"question": phrase(draw) + "?", "choice": choices, "answer": choices[number % 2]})
        sentences = [f"男：{phrase(draw)}。", f"女：{phrase(draw, 1 + 3 * (number % 4))}。"]
        instances.append([sentences, questions, f"{number}-1"])
    folder = tmp_path_factory.mktemp("c3")
    for name, some in (
        ("c3-d-dev.json", instances[:8]),
        ("c3-m-dev.json", instances[8:]),
        ("c3-d-train.json", instances[:3]),
    ):
        (folder / name).write_text(json.dumps(some, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tnews_folder(tmp_path_factory):
    draw = np.random.default_rng(1)
    labels = list(LABELS)
    lines = [
        json.dumps({"label": "100", "label_desc": labels[number % 6], "sentence": phrase(draw, 2), "keywords": ""})
        for number in range(20)
    ]
    folder = tmp_path_factory.mktemp("tnews")
    for name in ("dev.json", "train.json"):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def cmrc_folder(tmp_path_factory):
    draw = np.random.default_rng(2)
    articles = [
        {
            "paragraphs": [
                {
                    "context": context,
                    "id": str(number),
                    "qas": [
                        {
                            "question": phrase(draw) + "?",
                            "id": f"{number}-{i}",
                            "answers": [{"text": context.split("，")[i], "answer_start": 0}],
                        }
                        for i in range(2)
                    ],
                }
            ]
        }
        for number, context in enumerate(phrase(draw, 3) for _ in range(3))
    ]
    folder = tmp_path_factory.mktemp("cmrc")
    (folder / "dev.json").write_text(json.dumps({"version": "v1.0", "data": articles}))
    return folder
