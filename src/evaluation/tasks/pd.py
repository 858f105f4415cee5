"""People Daily (PD): the missing word of a news story."""

from src.evaluation.tasks.cloze import read
from src.evaluation.tasks.metrics import begins_with_answer
from src.evaluation.tasks.task import Task

PAPER = Task(
    "PD",
    "https://github.com/ymcui/Chinese-Cloze-RC",
    {"dev": ("pd.valid", "valid"), "test": ("pd.test", "test")},
    read,
    "generation",
    reported={"top1_acc": (38.47, 38.8, 39.07)},
    training=("pd.train", "pd.valid"),
    generation=dict(method="greedy", max_new_tokens=5),
    judge=begins_with_answer,
)
