"""CMRC 2018: questions about articles. The answers are spans of the article."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from src.common.errors import InputError
from src.evaluation.tasks.metrics import exact_match_and_f1
from src.evaluation.tasks.squad import PROMPT, questions, read
from src.evaluation.tasks.task import Prompt, Reading, Task

MINDFORMERS_SEED = 666
MINDFORMERS_SHOTS = (0, 1, 5)
ARTICLES = 500  # number of articles that MindFormers evaluates, from the first
ARTICLE_SHOWN, SENTENCE_SHOWN = 400, 80  # a demonstration of an article or of a sentence has fewer characters
ROOM = 1024 - 10  # demonstrations and question together have fewer characters

_END = re.compile(r"([。！？?])([^”’])")
_QUOTED_END = re.compile(r"([。！？?][”’])([^，。！？?])")


def read_as_mindformers(path: Path, reading: Reading) -> Iterator[Prompt]:
    """Read all questions about each article's first paragraph, each with its first answer only.

    Demonstrations are drawn as in MindFormers' cmrc2018_data_process.py: one whole article, or five single sentences.
    """
    if reading.shots not in MINDFORMERS_SHOTS:
        raise InputError(f"--variant mindformers of CMRC2018 has --shots 0, 1 or 5, not {reading.shots}")
    draw = np.random.RandomState(MINDFORMERS_SEED + reading.seed)
    articles, sentences = _demonstrations(path.parent / "train.json") if reading.shots else ((), ())
    for question in questions(path):
        if question.article >= ARTICLES or question.paragraph:
            continue
        shown = []
        if reading.shots:  # MindFormers draws both kinds for each question
            one, five = (draw.choice(len(pool), size) for pool, size in ((articles, 1), (sentences, 5)))
            shown = [articles[place] for place in one] if reading.shots == 1 else [sentences[place] for place in five]
        yield Prompt(_fitting(shown, ROOM - len(question.prompt)) + question.prompt, question.answers[:1])


def _fitting(texts: Sequence[str], room: int) -> str:
    """Join the texts that still fit into `room` characters."""
    joined = ""
    for text in texts:
        if len(joined) + len(text) < room:
            joined += text
    return joined


def _demonstrations(path: Path) -> tuple[list[str], list[str]]:
    articles, sentences = [], []
    for question in questions(path):
        if question.paragraph:
            continue
        answer = question.answers[0]
        articles.append(f"{question.prompt}{answer}\n")
        sentences += [
            f"{PROMPT.format(context=sentence, question=question.question)}{answer}\n"
            for sentence in _sentences(question.context)
            if answer in sentence
        ]
    pools = (
        [text for text in articles if len(text) < ARTICLE_SHOWN],
        [text for text in sentences if len(text) < SENTENCE_SHOWN],
    )
    if not all(pools):
        raise InputError(
            f"{path} holds no article of fewer than {ARTICLE_SHOWN} characters, or no sentence of fewer "
            f"than {SENTENCE_SHOWN}, with its question and answer"
        )
    return pools


def _sentences(text: str) -> list[str]:
    return _QUOTED_END.sub(r"\1\n\2", _END.sub(r"\1\n\2", text)).rstrip().split("\n")


def judge_as_mindformers(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Return EM and F1 of the first line that is not empty."""
    return exact_match_and_f1(prediction.strip().split("\n")[0], answers)


_FILES = {
    "dev": ("dev.json", "cmrc2018_dev.json"),
    "test": ("test.json", "cmrc2018_test.json"),
    "trial": ("trial.json", "cmrc2018_trial.json"),
}
_TRAINING = ("train.json", "cmrc2018_train.json")
_HOME = "https://storage.googleapis.com/cluebenchmark/tasks/cmrc2018_public.zip"

PAPER = Task(
    "CMRC2018",
    _HOME,
    _FILES,
    read,
    "generation",
    ("em", "f1"),
    {"em": (1.21, 2.49, 5.68), "f1": (16.65, 18.57, 23.22)},
    training=_TRAINING,
    generation=dict(method="sample", top_p=0.8, temperature=0.8, max_new_tokens=50, stop=["\n"]),
    judge=exact_match_and_f1,
    spans=True,
)
MINDFORMERS = Task(
    "CMRC2018",
    _HOME,
    _FILES,
    read_as_mindformers,
    "generation",
    ("em", "f1"),
    {"em": (2.10, None, None), "f1": (21.12, None, None)},
    "MindFormers",
    own_shots=True,
    generation=dict(method="sample", top_k=3, repetition_penalty=1.5, max_new_tokens=32),
    prompt_limit=(1019, 900),
    judge=judge_as_mindformers,
    spans=True,
)
