"""Loss of training in float32 and in bfloat16 on the same data: `python -m benchmarks.half_training --train DIR`.

Both runs of train.py have the same initial weights, the same order of the data and the same dropout masks.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table

ROOT = Path(__file__).parents[1]
DTYPES = ("float32", "bfloat16")
LAST = 20  # steps whose mean loss is compared


@dataclass
class BenchmarkArguments:
    """Train the same model with products in float32 and in bfloat16, compare the losses, and draw both curves.

    Args:
        train: MindRecord file or folder with the training data, as for train.py.
        output: Folder for the two runs. A run that is there goes on.
        mode: Size of the model, as for train.py.
        config: YAML file with more settings for train.py.
        steps: Number of training steps.
        picture: PNG file for the curves. The default is curves.png in `output`.
    """

    train: str
    output: str = "output/half_training"
    mode: str = "tiny"
    config: str = ""
    steps: int = 300
    picture: str = ""

    def __post_init__(self) -> None:
        whole_numbers(LAST, 1 << 20, self, "steps")
        if not Path(self.train).exists():
            raise InputError(f"--train {self.train} is not there; bash scripts/run_quickstart.sh makes such records")


def train(arguments: BenchmarkArguments, dtype: str) -> list[float]:
    """Train with products in a dtype, and return the loss of each step.

    Raises:
        InputError: train.py failed, or computed in another dtype.
    """
    from src.training.callbacks import read_metrics

    folder = Path(arguments.output) / dtype
    command = [sys.executable, str(ROOT / "train.py"), "--mode", arguments.mode]
    command += ["--config", arguments.config] if arguments.config else []
    command += [f"--data.train={arguments.train}", f"--training.output={folder}", f"--training.steps={arguments.steps}"]
    command += [f"--model.compute_dtype={dtype}", "--training.log_interval=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise InputError(f"train.py failed: {done.stdout.strip().splitlines()[-1][:300]}")
    if dtype == "bfloat16" and "products in bfloat16" not in done.stdout:
        raise InputError("this machine has no products in bfloat16: the line `warning:` of train.py says why")
    return [float(line["loss"]) for line in read_metrics(folder) if "loss" in line]


def draw(losses: dict[str, list[float]], picture: Path) -> None:
    """Draw the curves, and their difference below."""
    from src.training.callbacks import pyplot

    figure, (curves, difference) = pyplot.subplots(
        2, 1, figsize=(8, 5.5), sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    for (dtype, values), style in zip(losses.items(), ("-", "--"), strict=True):
        curves.plot(range(1, len(values) + 1), values, style, label=dtype, linewidth=1.2)
    ratios = [100 * (half / full - 1) for full, half in zip(*losses.values(), strict=True)]
    difference.plot(range(1, len(ratios) + 1), ratios, color="C2", linewidth=1)
    curves.set(ylabel="loss (nats a token)")
    curves.legend()
    difference.set(xlabel="step", ylabel="difference, %")
    for axes in (curves, difference):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def run(arguments: BenchmarkArguments) -> None:
    """Train twice, print the table, and draw the picture."""
    losses = {dtype: train(arguments, dtype) for dtype in DTYPES}
    last = {dtype: fmean(values[-LAST:]) for dtype, values in losses.items()}
    rows = [
        [dtype, f"{values[0]:.4f}", f"{last[dtype]:.4f}", f"{100 * (last[dtype] / last[DTYPES[0]] - 1):+.3f}%"]
        for dtype, values in losses.items()
    ]
    print(table(["products", "first loss", f"mean of the last {LAST} of {arguments.steps}", "difference"], rows))
    picture = Path(arguments.picture or Path(arguments.output) / "curves.png")
    draw(losses, picture)
    print(f"both curves: {picture}")


def main() -> None:
    """Run the command line."""
    run(parse(BenchmarkArguments, "python -m benchmarks.half_training"))


if __name__ == "__main__":
    run_program(main)
