"""Preprocessing with several processes against one: `python -m benchmarks.preprocess`.

Runs alternate, each in a fresh interpreter. A run's time is from loading the tokenizer to the finished file. Several
runs of one process at the same time, which share no work, show what the machine's cores reach together.
"""

import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

import jieba

from benchmarks.harness import rate_cells, ratio_of_pairs
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table
from src.preprocess import PreprocessArguments, preprocess
from src.train_tokenizer import train_sentencepiece

WORDS_A_LINE = 12
LINES_A_DOCUMENT = 8
TRAINING_LINES = 5_000
VOCAB_SIZE = 4_000


@dataclass
class BenchmarkArguments:
    """Compare preprocessing with one process and with several, on the same text in alternating runs.

    Args:
        input_glob: Text files. Default: words drawn from jieba's dictionary by their frequency.
        model_file: A vocab.model. Default: one that is trained on the drawn words.
        megabytes: Size of the drawn text in MB.
        num_process: Number of processes that are compared with one.
        runs: Number of runs of each kind.
    """

    input_glob: str = ""
    model_file: str = ""
    megabytes: float = 6.0
    num_process: int = 2
    runs: int = 3

    def __post_init__(self) -> None:
        whole_numbers(2, 4096, self, "num_process")
        whole_numbers(1, 1 << 20, self, "runs")
        if self.megabytes <= 0:
            raise InputError(f"--megabytes is {self.megabytes}; it must be more than 0")
        if self.input_glob and not self.model_file:
            raise InputError("--input_glob needs a --model_file that fits its text")


def draw_text(num_bytes: int) -> str:
    """Draw documents of words from jieba's dictionary, with the dictionary's frequencies."""
    jieba.initialize()
    words, counts = zip(*((word, count) for word, count in jieba.dt.FREQ.items() if count), strict=True)
    up_to_word = list(accumulate(counts))
    draw = random.Random(0)
    lines, size = [], 0
    while size < num_bytes:
        line = "".join(draw.choices(words, cum_weights=up_to_word, k=WORDS_A_LINE)) + "。\n"
        lines.append(line if len(lines) % LINES_A_DOCUMENT else "\n" + line)
        size += len(line.encode())
    return "".join(lines)


def rate_of(runs: Sequence[PreprocessArguments]) -> float:
    """Return the tokens per second of runs at the same time, each in a fresh interpreter."""
    with ProcessPoolExecutor(len(runs), get_context("spawn")) as interpreters:
        done = list(interpreters.map(preprocess, runs))
    return sum(one.tokens for one in done) / max(one.seconds for one in done)


def report(one: Sequence[float], apart: Sequence[float], together: Sequence[float], number: int) -> None:
    """Print a row for each kind of run, and the ratios."""
    print(
        table(
            ["processes", "median tokens/s", "slowest", "fastest", "/ 1 (spread)"],
            [
                ["1", *rate_cells(one), ""],
                [f"{number}", *rate_cells(together), ratio_of_pairs(together, one)],
                [f"{number} runs of 1 at once", *rate_cells(apart), ratio_of_pairs(apart, one)],
            ],
        ),
        flush=True,
    )
    print(f"ratio {ratio_of_pairs(together, one)}; of what the cores reach: {ratio_of_pairs(together, apart)}")


def main() -> None:
    """Parse the command line, measure, and print the table."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.preprocess")
    with tempfile.TemporaryDirectory() as folder:
        input_glob, model_file = arguments.input_glob, arguments.model_file
        if not input_glob:
            text = draw_text(int(arguments.megabytes * 1e6))
            input_glob = f"{folder}/text.txt"
            Path(input_glob).write_text(text, encoding="utf-8")
        if not model_file:
            model_file = f"{folder}/vocab.model"
            Path(model_file).write_bytes(train_sentencepiece(text.splitlines()[:TRAINING_LINES], VOCAB_SIZE, 0.98))
        number, one, apart, together = arguments.num_process, [], [], []
        for _ in range(arguments.runs):
            alone, *others = (
                PreprocessArguments(input_glob, model_file, num_process=1, output_file=f"{folder}/{run}.mindrecord")
                for run in range(number)
            )
            one.append(rate_of([alone]))
            together.append(rate_of([replace(alone, num_process=number)]))
            apart.append(rate_of([alone, *others]))
        report(one, apart, together, number)


if __name__ == "__main__":
    run_program(main)
