"""Find a task by its name."""

from importlib import import_module

from src.common.errors import InputError, nearest
from src.evaluation.tasks.task import Task

NAMES = (
    "c3",
    "cmrc2018",
    "drcd",
    "dureader",
    "webqa",
    "cmrc2017",
    "cmrc2019",
    "pd",
    "cft",
    "chid",
    "tnews",
    "iflytek",
    "afqmc",
    "ocnli",
    "cmnli",
    "csl",
    "wsc2020",
    "wplc",
)
VARIANTS = ("paper", "mindformers")


def find_task(name: str, variant: str = "paper") -> Task:
    """Return a task.

    Args:
        name: Name of the benchmark, in upper or lower case.
        variant: Protocol: paper or mindformers.

    Raises:
        InputError: There is no such task, or the task has no such variant.
    """
    known = name.lower()
    if known not in NAMES:
        raise InputError(f"--task '{name}' is none of {', '.join(NAMES)}{nearest(known, NAMES)}")
    if variant not in VARIANTS:
        raise InputError(f"--variant '{variant}' is none of {', '.join(VARIANTS)}")
    module = import_module(f"src.evaluation.tasks.{known}")
    if not hasattr(module, variant.upper()):
        raise InputError(f"--task {known} has no --variant {variant}; only tnews and cmrc2018 have")
    return getattr(module, variant.upper())
