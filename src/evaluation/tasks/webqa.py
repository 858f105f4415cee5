"""WebQA: questions without a text that holds the answer."""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.common.reading import read_json
from src.evaluation.tasks.files import Record
from src.evaluation.tasks.metrics import exact_match_and_f1
from src.evaluation.tasks.task import Prompt, Reading, Task

PROMPT = "问：{question}\n答："
NO_ANSWER = "no_answer"


def read(path: Path, reading: Reading) -> Iterator[Prompt]:
    """Read WebQA 1.0's {id: {"question", "evidences": {id: {"answer"}}}}.

    The answers of all evidences are right. Questions without an answer are left out.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} is not WebQA's object of questions by their ids")
    empty = True
    for name, values in content.items():
        record = Record(values, f"{path}, record '{name}'")
        answers = [
            answer
            for evidence in record.record("evidences").all_records()
            for answer in evidence.texts("answer")
            if answer != NO_ANSWER
        ]
        if answers:
            empty = False
            yield Prompt(PROMPT.format(question=record.text("question")), list(dict.fromkeys(answers)))
    if empty:
        raise InputError(f"{path} has no question with an answer")


PAPER = Task(
    "WebQA",
    "https://spaces.ac.cn/archives/4338",
    {"dev": ("me_validation.ann.json",), "test": ("me_test.ann.json",)},
    read,
    "generation",
    ("em", "f1"),
    training=("me_train.json",),
    generation=dict(method="sample", top_k=5, max_new_tokens=50, stop=["\n"]),
    judge=exact_match_and_f1,
)
