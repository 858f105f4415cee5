"""IFLYTEK: which kind of app does a text describe? The choice is among the right label and three others."""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Choice, Reading, Task

CONTEXT = "这是关于{label}的应用程序："
WRONG_LABELS = 3


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"label_des", "sentence"}. The other labels are drawn from those of the file."""
    known = sorted({record.text("label_des") for record in records(path)})
    if len(known) <= WRONG_LABELS:
        raise InputError(f"{path} has only {len(known)} labels; {WRONG_LABELS + 1} are needed")
    for number, record in enumerate(records(path)):
        answer, draw = record.text("label_des"), reading.draw(number)
        labels = [answer, *draw.sample([label for label in known if label != answer], WRONG_LABELS)]
        draw.shuffle(labels)
        yield Choice([(CONTEXT.format(label=label), record.text("sentence")) for label in labels], labels, answer)


PAPER = Task(
    "IFLYTEK",
    "https://storage.googleapis.com/cluebenchmark/tasks/iflytek_public.zip",
    {"dev": ("dev.json",)},
    read,
    reported={"top1_acc": (74.26, 79.03, 80.15)},
    training=("train.json",),
)
