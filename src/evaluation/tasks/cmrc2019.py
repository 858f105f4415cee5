"""CMRC 2019: which sentence fills a blank of a story?"""

import re
from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.common.reading import read_json
from src.evaluation.tasks.files import Record
from src.evaluation.tasks.task import Choice, Reading, Task

BLANK = re.compile(r"\[BLANK(\d+)\]")
LEFT, RIGHT = 300, 200  # characters of the story that are read before and after a blank


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read {"data": [{"context", "choices", "answers"}]}. Each blank is a question, and the other blanks stay empty.

    The choice and the text after it are scored.
    """
    for record in Record(read_json(path), str(path)).records("data"):
        context, choices, answers = record.text("context"), record.texts("choices"), record.numbers("answers")
        labels = [f"{number}: {choice}" for number, choice in enumerate(choices)]
        for number, answer in enumerate(answers, 1):
            before, blank, after = context.partition(f"[BLANK{number}]")
            if not blank or not 0 <= answer < len(choices):
                raise InputError(
                    f"{record.where}: blank {number} is missing in 'context', or its answer {answer} is "
                    f"none of the {len(choices)} choices"
                )
            before, after = (BLANK.sub("", side) for side in (before[-LEFT:], after[:RIGHT]))
            yield Choice([(before, choice + after) for choice in choices], labels, labels[answer])


PAPER = Task(
    "CMRC2019",
    "https://github.com/ymcui/cmrc2019",
    {
        "dev": ("cmrc2019_dev.json", "dev.json"),
        "test": ("cmrc2019_test.json", "test.json"),
        "trial": ("cmrc2019_trial.json", "trial.json"),
    },
    read,
    reported={"top1_acc": (68.22, 68.05, 66.26)},
    training=("cmrc2019_train.json", "train.json"),
)
