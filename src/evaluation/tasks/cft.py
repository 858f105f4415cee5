"""Children's Fairy Tale (CFT): the missing word of a fairy tale. It has no training files, so PD's are used."""

from src.evaluation.tasks.cloze import read
from src.evaluation.tasks.metrics import begins_with_answer
from src.evaluation.tasks.task import Task

PAPER = Task(
    "CFT",
    "https://github.com/ymcui/Chinese-Cloze-RC",
    {"test": ("cft.test.human", "cft.test"), "dev": ("cft.test.human", "cft.test")},
    read,
    "generation",
    reported={"top1_acc": (42.39, 41.61, 42.05)},
    training=("pd.train", "pd.valid"),
    generation=dict(method="greedy", max_new_tokens=5),
    judge=begins_with_answer,
)
