"""A training step by MindFormers' loop and by `train.py`: `python -m benchmarks.mindformers_step --train DIR`.

Both train the same network on the same records, in processes of their own that take turns. A step's time is the median
that the program itself reports, after the steps in which it compiles.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.harness import ratio_of_pairs
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 5  # steps that are not measured
# What the plug-in's YAML file calls the shapes.
SHAPES = ("vocab_size", "num_layers", "hidden_size", "num_heads", "seq_length")


@dataclass
class BenchmarkArguments:
    """Compare the time of a training step of MindFormers, with the plug-in, and of train.py.

    Args:
        train: Folder of MindRecord files, such as output/quickstart/train.
        vocab_size: Rows of the word embedding.
        num_layers: Number of Transformer layers, with the query layer.
        hidden_size: Width of the hidden states.
        num_heads: Number of attention heads.
        seq_length: Tokens in a sequence, one fewer than in the records.
        batch_size: Sequences in a step.
        epochs: Epochs of each turn. One must have more than 5 steps.
        turns: Number of turns of each program.
        python: Python of the environment with MindFormers.
    """

    train: str
    vocab_size: int = 2000
    num_layers: int = 3
    hidden_size: int = 128
    num_heads: int = 4
    seq_length: int = 128
    batch_size: int = 8
    epochs: int = 1
    turns: int = 3
    python: str = str(ROOT / ".venv-mindformers/bin/python")

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "batch_size", "epochs", "turns")
        if not Path(self.python).is_file():
            raise InputError(f"--python {self.python} is not there; bash scripts/setup_env.sh mindformers makes it")
        if not Path(self.train).exists():
            raise InputError(f"--train {self.train} is not there; bash scripts/run_quickstart.sh makes such records")


def _output(command: list[str], folder: str) -> str:
    """Return what a program prints. Raises InputError if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise InputError(f"{Path(command[1]).name} failed: {done.stdout.strip().splitlines()[-1][:300]}")
    return done.stdout


def _mindformers(arguments: BenchmarkArguments, steps: int) -> list[float]:
    """Return the milliseconds of each step by MindFormers."""
    shapes = [f"model.model_config.{name}={getattr(arguments, name)}" for name in SHAPES]
    command = [arguments.python, "-m", "ports.mindformers.run_mindformer", "--run_mode", "train"]
    command += ["--config", str(ROOT / "configs/pangualpha/run_pangualpha_tiny.yaml"), "--use_parallel", "False"]
    command += ["--train_dataset_dir", str(Path(arguments.train).absolute()), "--epochs", str(arguments.epochs)]
    command += ["--batch_size", str(arguments.batch_size), "--options", *shapes]
    with tempfile.TemporaryDirectory() as folder:
        printed = _output(command, folder)
    return [float(found) for found in re.findall(r"per_step_time: (\d+)ms", printed)][:steps]


def _project(arguments: BenchmarkArguments, steps: int) -> list[float]:
    """Return the milliseconds of each step by train.py."""
    command = [sys.executable, str(ROOT / "train.py"), "--mode", "tiny", "--training.log_interval", "1"]
    command += ["--data.train", str(Path(arguments.train).absolute()), "--training.steps", str(steps)]
    command += [f"--training.batch_size={arguments.batch_size}", "--training.warmup_steps=5", "--training.output=run"]
    command += [f"--model.{name}={getattr(arguments, name)}" for name in SHAPES]
    with tempfile.TemporaryDirectory() as folder:
        _output(command, folder)
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    tokens = arguments.batch_size * arguments.seq_length
    found = (json.loads(line) for line in lines)
    return [1000 * tokens / one["tokens_per_second"] for one in found if "tokens_per_second" in one]


def run(arguments: BenchmarkArguments) -> None:
    """Measure in turns, and print the table."""
    from src.dataset import TokenBatches

    batches = TokenBatches(
        arguments.train, "input_ids", arguments.batch_size, arguments.seq_length, arguments.vocab_size
    )
    steps = batches.batches_per_epoch * arguments.epochs
    if steps <= WARM_UP:
        raise InputError(f"--train {arguments.train} gives {steps} steps; more than {WARM_UP} are needed")
    programs: dict[str, Callable[[BenchmarkArguments, int], list[float]]]
    programs = {"MindFormers, plug-in": _mindformers, "train.py": _project}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(arguments.turns):
        for name in sorted(programs, reverse=bool(turn % 2)):
            times[name].append(median(programs[name](arguments, steps)[WARM_UP:]))
            print(f"turn {turn + 1}: {name} {times[name][-1]:.0f} ms a step", flush=True)
    ours = times["train.py"]
    rows = [
        [name, f"{median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}", ratio_of_pairs(found, ours)]
        for name, found in times.items()
    ]
    print(f"{steps} steps of {arguments.batch_size} x {arguments.seq_length} tokens a turn, float32")
    print(table(["training step", "median ms", "fastest turn", "slowest turn", "this / train.py (spread)"], rows))


def main() -> None:
    """Run the command line."""
    run(parse(BenchmarkArguments, "python -m benchmarks.mindformers_step"))


if __name__ == "__main__":
    run_program(main)
