"""CMRC 2017: the missing word of a fairy tale."""

from src.evaluation.tasks.cloze import read
from src.evaluation.tasks.metrics import begins_with_answer
from src.evaluation.tasks.task import Task

PAPER = Task(
    "CMRC2017",
    "https://github.com/ymcui/cmrc2017",
    {
        "dev": ("valid.doc_query", "cmrc2017_cloze_valid.txt", "valid.txt"),
        "test": ("test.doc_query", "cmrc2017_cloze_test.txt", "test.txt"),
    },
    read,
    "generation",
    reported={"top1_acc": (37.83, 38.00, 36.33)},
    training=("train.doc_query", "cmrc2017_cloze_train.txt", "train.txt"),
    generation=dict(method="sample", top_p=0.9, max_new_tokens=5),
    judge=begins_with_answer,
)
