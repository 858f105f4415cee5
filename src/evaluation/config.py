"""What eval.py is told: the benchmark, and where its scores come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from src.common.checks import at_least
from src.common.cli import flag_value
from src.common.errors import InputError
from src.inference.config import CheckpointConfig
from src.serving.backends import DEFAULT_SERVER

CLIENT_FLAG = "--enable_client"
# What the ModelZoo's predict.py calls the flags of eval.py, when it evaluates through a server.
CLIENT_FLAGS = {"--eval_task": "--task", "--eval_data_url": "--task_path", "--tokenizer_path": "--data.tokenizer_path"}


@dataclass
class EvalConfig(CheckpointConfig):
    """Score a checkpoint on a benchmark of the paper. A checkpoint that was trained here brings its own settings.

    Args:
        server: No checkpoint: a running server, http://127.0.0.1:1500, of the model that --mode says (docs/serving.md).
        task: c3, cmrc2018, drcd, dureader, webqa, cmrc2017, cmrc2019, pd, cft, chid, tnews, iflytek, afqmc, ocnli,
            cmnli, csl, wsc2020 or wplc.
        task_path: Folder of the benchmark's published files, or one such file.
        split: Which of its files: dev or test.
        variant: paper, or for tnews and cmrc2018 mindformers.
        shots: Demonstrations before each question, drawn from the training file: 0, 1 or more.
        seed: Of the drawn demonstrations, wrong labels and answers.
        limit: Evaluate only the first so many examples; 0 for all.
        batch_size: Texts as long as model.seq_length that are computed at once; of shorter ones more.
        score: mean (the perplexity of the scored tokens) or, for c3, modelzoo (as the ModelZoo normalises).
        output: Folder of the predictions and figures; an interrupted run goes on there. output/eval/... when empty.
    """

    server: str = ""
    task: str = ""
    task_path: str = ""
    split: str = "dev"
    variant: Literal["paper", "mindformers"] = "paper"
    shots: int = 0
    seed: int = 0
    limit: int = 0
    batch_size: int = 4
    score: Literal["mean", "modelzoo"] = "mean"
    output: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_source("server")
        for name in ("task", "task_path"):
            if not getattr(self, name):
                raise InputError(f"give --{name}" + ("" if name == "task" else ": the folder of the benchmark's files"))
        at_least(0, self, "shots", "seed", "limit")
        at_least(1, self, "batch_size")
        if self.score == "modelzoo" and self.task.lower() != "c3":
            raise InputError(f"--score modelzoo is how the ModelZoo scores c3, not {self.task}; take --score mean")
        if self.parallel.data > 1 or self.parallel.pipeline > 1:
            raise InputError(
                "eval.py spreads a model by parallel.tensor or parallel.expert, not by parallel.data "
                f"({self.parallel.data}) or parallel.pipeline ({self.parallel.pipeline})"
            )
        self.require_tokenizer()

    @property
    def output_folder(self) -> Path:
        """Where predictions go."""
        return Path(self.output or f"output/eval/{self.task.lower()}-{self.split}-{self.variant}-{self.shots}shot")


def settings_of(config: EvalConfig, files: list[Path]) -> dict[str, Any]:
    """What predictions depend on."""
    return {
        "checkpoint": config.checkpoint or config.server or "random weights",
        "task": config.task.lower(),
        "variant": config.variant,
        "split": config.split,
        "shots": config.shots,
        "seed": config.seed,
        "score": config.score,
        "files": {file.name: file.stat().st_size for file in files},
    }


def flags_of_client(arguments: Sequence[str]) -> list[str]:
    """The command line `predict.py --enable_client ...` as eval.py's; at this machine's server if none is named."""
    flags = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != CLIENT_FLAG:
            flags.append(CLIENT_FLAGS.get(name, name) + equals + value)
    return flags if flag_value("--server", flags) else [*flags, "--server", DEFAULT_SERVER]
