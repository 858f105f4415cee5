"""WSC2020 (CLUEWSC): does a pronoun stand for a noun?"""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Choice, Reading, Task

LABELS = {"true": "true", "false": "false"}


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"text", "target", "label"}.

    The paper gives no prompt. Here the text with the noun in the place of the pronoun means true, the unchanged text
    means false, and the whole text is scored.
    """
    for record in records(path):
        text, target = record.text("text"), record.record("target")
        begin, pronoun, noun = target.number("span2_index"), target.text("span2_text"), target.text("span1_text")
        if text[begin : begin + len(pronoun)] != pronoun:
            raise InputError(
                f"{record.where}: 'span2_text' is '{pronoun}', but 'text' has "
                f"'{text[begin : begin + len(pronoun)]}' at {begin}"
            )
        replaced = text[:begin] + noun + text[begin + len(pronoun) :]
        yield Choice([("", replaced), ("", text)], list(LABELS), record.choice("label", LABELS))


PAPER = Task(
    "WSC2020",
    "https://storage.googleapis.com/cluebenchmark/tasks/cluewsc2020_public.zip",
    {"dev": ("dev.json",)},
    read,
    reported={"top1_acc": (73.36, 75.33, 72.70)},
    training=("train.json",),
)
