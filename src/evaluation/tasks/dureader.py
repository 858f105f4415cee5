"""DuReader: questions to a search engine, answered from the documents that it found."""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.evaluation.tasks.files import records
from src.evaluation.tasks.metrics import rouge_1
from src.evaluation.tasks.squad import PROMPT
from src.evaluation.tasks.squad import read as read_squad
from src.evaluation.tasks.task import Prompt, Reading, Task


def read(path: Path, reading: Reading) -> Iterator[Prompt]:
    """Read DuReader 2.0's lines, or DuReader-robust in SQuAD's format.

    Each selected document of a question gives a prompt with its first paragraph. Questions without answers or without
    selected documents are left out.
    """
    first = next(records(path))
    if "data" in first:
        yield from read_squad(path, reading)
        return
    empty = True
    for record in records(path):
        question = record.text("question")
        if not ("answers" in record and record.some("answers")):
            continue
        for document in record.records("documents"):
            if document.flag("is_selected") and document.some("paragraphs"):
                empty = False
                context = document.texts("paragraphs")[0]
                yield Prompt(PROMPT.format(context=context, question=question), record.texts("answers"))
    if empty:
        raise InputError(f"{path} has no question with answers and a selected document")


PAPER = Task(
    "DuReader",
    "https://github.com/baidu/DuReader",
    {"dev": ("search.dev.json", "zhidao.dev.json", "dev.json"), "test": ("search.test.json", "test.json")},
    read,
    "generation",
    ("rouge_1",),
    training=("search.train.json", "zhidao.train.json", "train.json"),
    generation=dict(method="sample", top_p=0.9, temperature=0.7, max_new_tokens=50, stop=["\n"]),
    judge=rouge_1,
)
