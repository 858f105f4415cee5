"""OCNLI: does one sentence follow from another? Written in Chinese."""

from src.evaluation.tasks.nli import read
from src.evaluation.tasks.task import Task

PAPER = Task(
    "OCNLI",
    "https://github.com/CLUEbenchmark/OCNLI",
    {"dev": ("dev.json",)},
    read,
    reported={"top1_acc": (42.61, 44.00, 46.78)},
    training=("train.json", "train.50k.json"),
)
