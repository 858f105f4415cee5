"""CSL: are all given keywords really those of a paper?"""

from collections.abc import Iterator
from pathlib import Path

from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Choice, Reading, Task

TEXT = "摘要：{abstract}，关键词：{keywords}{label}真实关键词"
LABELS = {"0": "不是", "1": "是"}


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"abst", "keyword", "label"}. The whole text is scored."""
    labels = list(LABELS.values())
    for record in records(path):
        abstract, keywords = record.text("abst"), "，".join(record.texts("keyword"))
        texts = [TEXT.format(abstract=abstract, keywords=keywords, label=label) for label in labels]
        yield Choice([("", text) for text in texts], labels, record.choice("label", LABELS))


PAPER = Task(
    "CSL",
    "https://storage.googleapis.com/cluebenchmark/tasks/csl_public.zip",
    {"dev": ("dev.json",)},
    read,
    reported={"top1_acc": (50.50, 50.90, 52.00)},
    training=("train.json",),
    cut="front",
)
