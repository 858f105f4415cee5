"""Settings of eval.py: the benchmark, and the model or server that is evaluated. The docstrings are the help."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from src.common.checks import whole_numbers
from src.common.cli import flag_value
from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.inference.config import CheckpointConfig
from src.serving.backends import DEFAULT_SERVER

CLIENT_FLAG = "--enable_client"
# Names that the ModelZoo's predict.py gives to flags of eval.py when it evaluates through a server.
CLIENT_FLAGS = {"--eval_task": "--task", "--eval_data_url": "--task_path", "--tokenizer_path": "--data.tokenizer_path"}


@dataclass
class EvalConfig(CheckpointConfig):
    """Score a checkpoint on a benchmark of the paper. A checkpoint that was trained here brings its own settings.

    Args:
        server: Address of a running server to evaluate instead of a checkpoint, such as http://127.0.0.1:1500. --mode
            says which model it serves (docs/serving.md).
        task: Name of the benchmark: c3, cmrc2018, drcd, dureader, webqa, cmrc2017, cmrc2019, pd, cft, chid, tnews,
            iflytek, afqmc, ocnli, cmnli, csl, wsc2020 or wplc.
        task_path: Folder of the benchmark's published files, or one such file.
        split: Part of the benchmark to evaluate: dev or test.
        variant: Protocol of the evaluation: paper, or mindformers (for tnews and cmrc2018).
        shots: Number of demonstrations before each question. They are drawn from the training file.
        seed: Seed of the random demonstrations, wrong labels and sampled answers.
        limit: Number of examples to evaluate, from the first; 0 for all.
        batch_size: Number of texts of model.seq_length tokens in a batch. Shorter texts make larger batches.
        score: mean (mean loss of the scored tokens), or modelzoo (for c3: normalised as the ModelZoo does).
        output: Folder of the predictions and scores. An interrupted evaluation goes on there; predictions of another
            model, of other settings or of changed data are moved aside. When empty, a folder in output/eval.
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
        whole_numbers(0, 1000, self, "shots")
        whole_numbers(0, 2**32 - 1, self, "seed", "limit")
        whole_numbers(1, 1 << 16, self, "batch_size")
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
        """Folder of the predictions and scores."""
        name = f"{self.task.lower()}-{self.split}-{self.variant}-{self.shots}shot" + "-server" * bool(self.server)
        return Path(self.output or f"output/eval/{name}")


def flags_of_client(arguments: Sequence[str]) -> list[str]:
    """Turn the command line `predict.py --enable_client ...` into that of eval.py.

    Without --server, the server of this machine is meant.
    """
    flags = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != CLIENT_FLAG:
            flags.append(CLIENT_FLAGS.get(name, name) + equals + value)
    return flags if flag_value("--server", flags) else [*flags, "--server", DEFAULT_SERVER]


def typed_generation(arguments: Sequence[str]) -> list[str]:
    """Return the names of the settings of generation that a command line gives, such as temperature."""
    names = [field.name for field in fields(GenerationConfig)]
    return [name for name in names if flag_value(f"--generation.{name}", arguments) is not None]
