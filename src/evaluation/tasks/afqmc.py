"""AFQMC: do two questions to a bank mean the same?"""

from collections.abc import Iterator
from pathlib import Path

from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Choice, Reading, Task

CONTEXT = "下面两个句子语义{label}："
LABELS = {"0": "不同", "1": "相同"}


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"sentence1", "sentence2", "label"}."""
    labels = list(LABELS.values())
    for record in records(path):
        scored, answer = f"{record.text('sentence1')}。{record.text('sentence2')}", record.choice("label", LABELS)
        yield Choice([(CONTEXT.format(label=label), scored) for label in labels], labels, answer)


PAPER = Task(
    "AFQMC",
    "https://storage.googleapis.com/cluebenchmark/tasks/afqmc_public.zip",
    {"dev": ("dev.json",)},
    read,
    reported={"top1_acc": (59.29, 64.62, 69.00)},
    training=("train.json",),
)
