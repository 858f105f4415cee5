"""CMNLI: does one sentence follow from another? Translated into Chinese."""

from src.evaluation.tasks.nli import read
from src.evaluation.tasks.task import Task

PAPER = Task(
    "CMNLI",
    "https://storage.googleapis.com/cluebenchmark/tasks/cmnli_public.zip",
    {"dev": ("dev.json",)},
    read,
    reported={"top1_acc": (50.20, 49.54, 51.17)},
    training=("train.json",),
)
