"""ChID: which of ten idioms fills a blank of a text?"""

import re
from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.common.reading import read_json
from src.evaluation.tasks.files import Record, records
from src.evaluation.tasks.task import Choice, Reading, Task

BLANK = re.compile(r"#idiom\d+#")


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"content", "candidates"}; the answers are in a file beside them.

    Each blank is a question. The whole text is scored with each idiom in the blank; the other blanks stay empty.
    """
    answer_file = path.with_name(f"{path.stem}_answer.json")
    answers = Record(read_json(answer_file), str(answer_file))
    for record in records(path):
        candidates = record.texts("candidates")
        for content in record.texts("content"):
            for blank in BLANK.findall(content):
                place = answers.number(blank)
                if not 0 <= place < len(candidates):
                    raise InputError(
                        f"{answer_file}: {blank} is {place}, none of the {len(candidates)} candidates of {record.where}"
                    )
                before, _, after = content.partition(blank)
                before, after = BLANK.sub("", before), BLANK.sub("", after)
                yield Choice([("", before + idiom + after) for idiom in candidates], candidates, candidates[place])


PAPER = Task(
    "CHID",
    "https://storage.googleapis.com/cluebenchmark/tasks/chid_public.zip",
    {"dev": ("dev.json",), "test": ("test.json",)},
    read,
    reported={"top1_acc": (68.73, 68.16, 66.56)},
    training=("train.json",),
)
