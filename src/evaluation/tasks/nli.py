"""Natural language inference: does one sentence follow from another? The file format of OCNLI and CMNLI."""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.evaluation.tasks.files import records
from src.evaluation.tasks.task import Choice, Reading

LABELS = {"entailment": "对", "neutral": "或许", "contradiction": "错"}
DISPUTED = "-"  # label of pairs on which the annotators did not agree


def read(path: Path, reading: Reading) -> Iterator[Choice]:
    """Read CLUE's lines of {"sentence1", "sentence2", "label"}. The whole text is scored."""
    labels, empty = list(LABELS.values()), True
    for record in records(path):
        answer = record.choice("label", LABELS | {DISPUTED: DISPUTED})
        if answer == DISPUTED:
            continue
        empty = False
        first, second = record.text("sentence1"), record.text("sentence2")
        yield Choice([("", f"{first}？{label}，{second}") for label in labels], labels, answer)
    if empty:
        raise InputError(f"{path} has no pair whose label the annotators agree on")
