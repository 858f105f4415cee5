"""WPLC: perplexity of the last word of a long text."""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Choice, Reading, Task

MASK = "<mask>"


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read lines of {"masked_text", "correct_word"}. The text before the mask is the context."""
    for record in records(path):
        before, mask, _ = record.text("masked_text").partition(MASK)
        word = record.text("correct_word")
        if not (mask and before and word):
            raise InputError(
                f"{record.where}: 'masked_text' has no {MASK} with a text before it, or 'correct_word' is empty"
            )
        yield Choice([(before, word)], [word], word)


PAPER = Task(
    "WPLC",
    "https://git.openi.org.cn/PCL-Platform.Intelligence/WPLC",
    {"dev": ("dev.json", "dev.jsonl"), "test": ("test.json", "test.jsonl")},
    read,
    "perplexity",
    ("perplexity",),
    training=("train.json", "train.jsonl"),
    cut="front",
)
