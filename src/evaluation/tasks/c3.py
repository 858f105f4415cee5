"""C3: multiple choice about dialogues (files `d`) and mixed-genre texts (`m`). The text is scored after each answer."""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.common.reading import read_json
from src.evaluation.tasks.files import Record
from src.evaluation.tasks.task import Choice, Reading, Task

CONTEXT = "问：{question}\n答：{choice}\n该答案来自对话："


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read a list of [sentences, questions, name]."""
    instances = read_json(path)
    if not isinstance(instances, list) or not instances:
        raise InputError(f"{path} is not a list of C3's [sentences, questions, name]")
    for number, instance in enumerate(instances, 1):
        where = f"{path}, record {number}"
        if not (isinstance(instance, list) and len(instance) >= 2 and isinstance(instance[1], list)):
            raise InputError(f"{where} is not C3's [sentences, questions, name]")
        passage = "".join(Record({"passage": instance[0]}, where).texts("passage"))
        for question in (Record(values, where) for values in instance[1]):
            choices, answer = question.texts("choice"), question.text("answer")
            if answer not in choices:
                raise InputError(f"{where}: the answer '{answer}' is none of the choices")
            contexts = [CONTEXT.format(question=question.text("question"), choice=choice) for choice in choices]
            yield Choice([(context, passage) for context in contexts], choices, answer)


PAPER = Task(
    "C3",
    "https://github.com/nlpdata/c3",
    {"dev": ("c3-d-dev.json", "c3-m-dev.json"), "test": ("c3-d-test.json", "c3-m-test.json")},
    read,
    reported={"top1_acc": (53.42, 52.82, 53.64)},
    training=("c3-d-train.json", "c3-m-train.json"),
)
