"""TNEWS: which category has a headline? The choice is among the right category and three others."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.common.errors import InputError
from src.evaluation.tasks.files import Record, records
from src.evaluation.tasks.task import Choice, Reading, Task

CONTEXT = "这是关于{label}的文章："
LABELS = {
    "news_story": "故事",
    "news_culture": "文化",
    "news_entertainment": "娱乐",
    "news_sports": "体育",
    "news_finance": "财经",
    "news_house": "房产",
    "news_car": "汽车",
    "news_edu": "教育",
    "news_tech": "科技",
    "news_military": "军事",
    "news_travel": "旅行",
    "news_world": "世界",
    "news_stock": "股票",
    "news_agriculture": "农业",
    "news_game": "游戏",
}
WRONG_LABELS = 3
MINDFORMERS_SEED = 2
SHOWN, SHOWN_LENGTH = 6, 150  # number and length in characters of the headlines that MindFormers draws


def _choice(labels: list[str], answer: str, sentence: str, before: str = "") -> Choice:
    return Choice([(before + CONTEXT.format(label=label), sentence) for label in labels], labels, answer)


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"label_desc", "sentence"}."""
    for number, record in enumerate(records(path)):
        answer, draw = record.choice("label_desc", LABELS), reading.draw(number)
        labels = [answer, *draw.sample([label for label in LABELS.values() if label != answer], WRONG_LABELS)]
        draw.shuffle(labels)
        yield _choice(labels, answer, record.text("sentence"))


def read_as_mindformers(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read the same lines; draw as MindFormers' tnews_data_process.py (1.0): from numpy's generator with seed 2.

    The wrong labels are drawn from those of the file, and the demonstrations from the file itself.
    """
    if reading.shots > SHOWN:
        raise InputError(f"--variant mindformers of TNEWS has at most --shots {SHOWN}, not {reading.shots}")
    found = list(records(path))
    answers = [record.choice("label_desc", LABELS) for record in found]
    known = sorted(set(answers))
    draw = np.random.default_rng(MINDFORMERS_SEED + reading.seed)
    shown = _shown(found, answers, known, draw)[: reading.shots]
    before = "".join(text + "\n" for text in shown)
    for record, answer in zip(found, answers, strict=True):
        others = [label for label in known if label != answer]
        labels = [answer, *(others[place] for place in draw.permutation(len(others))[:WRONG_LABELS])]
        labels = [labels[place] for place in draw.permutation(len(labels))]
        yield _choice(labels, answer, record.text("sentence"), before)


def _shown(found: list[Record], answers: list[str], known: list[str], draw: np.random.Generator) -> list[str]:
    """Draw headlines with different labels, in random order."""
    of_labels = [np.array([place for place, answer in enumerate(answers) if answer == label]) for label in known]
    for places in of_labels:
        draw.shuffle(places)
    each = (SHOWN - 1) // len(known) + 1
    chosen = np.concatenate([places[:each] for places in of_labels])
    draw.shuffle(chosen)
    return [
        (CONTEXT.format(label=answers[place]) + found[place].text("sentence"))[:SHOWN_LENGTH]
        for place in chosen[:SHOWN]
    ]


_FILES = {"dev": ("dev.json",), "test": ("test.json",)}
_HOME = "https://storage.googleapis.com/cluebenchmark/tasks/tnews_public.zip"

PAPER = Task("TNEWS", _HOME, _FILES, read, reported={"top1_acc": (60.95, 57.95, 63.62)}, training=("train.json",))
MINDFORMERS = Task(
    "TNEWS",
    _HOME,
    _FILES,
    read_as_mindformers,
    reported={"top1_acc": (None, 64.58, None)},
    reported_by="MindFormers",
    own_shots=True,
)
