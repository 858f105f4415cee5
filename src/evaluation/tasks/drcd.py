"""DRCD: questions about articles, in traditional Chinese."""

from src.evaluation.tasks.metrics import exact_match_and_f1
from src.evaluation.tasks.squad import read
from src.evaluation.tasks.task import Task

PAPER = Task(
    "DRCD",
    "https://github.com/DRCKnowledgeTeam/DRCD",
    {"dev": ("DRCD_dev.json", "dev.json"), "test": ("DRCD_test.json", "test.json")},
    read,
    "generation",
    ("em", "f1"),
    training=("DRCD_training.json", "train.json"),
    generation=dict(method="sample", top_p=0.8, temperature=0.8, max_new_tokens=50, stop=["\n"]),
    judge=exact_match_and_f1,
    spans=True,
)
