"""How much faster two processes preprocess than one: `python -m benchmarks.preprocess`.

Runs alternate, each in a fresh interpreter, and count everything from loading the tokenizer to the finished file.
"""

import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path

import jieba

from benchmarks.harness import print_table, rate_cells, ratio_of_pairs
from src.cli import parse
from src.errors import InputError, run_program
from src.preprocess import PreprocessArguments, Summary, preprocess
from src.train_tokenizer import train_sentencepiece

WORDS_A_LINE = 12
LINES_A_DOCUMENT = 8
TRAINING_LINES = 5_000
VOCAB_SIZE = 4_000


@dataclass
class BenchmarkArguments:
    """Compare one process with several, on the same text in alternating runs.

    Args:
        input_glob: Text files; when not given, words drawn from jieba's dictionary by their frequency.
        model_file: A vocab.model; when not given, one is trained on the drawn words.
        megabytes: Size of the drawn text.
        num_process: Processes compared with one.
        runs: Runs of each.
    """

    input_glob: str = ""
    model_file: str = ""
    megabytes: float = 6.0
    num_process: int = 2
    runs: int = 3

    def __post_init__(self) -> None:
        if self.num_process < 2 or self.runs < 1 or self.megabytes <= 0:
            raise InputError("--num_process must be at least 2, --runs at least 1, --megabytes more than 0")
        if self.input_glob and not self.model_file:
            raise InputError("--input_glob needs a --model_file that fits its text")


def draw_text(num_bytes: int) -> str:
    """Documents of words from jieba's dictionary, as frequent as there."""
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


def run_once(arguments: PreprocessArguments) -> Summary:
    """One run in a fresh interpreter."""
    with ProcessPoolExecutor(1, get_context("spawn")) as interpreter:
        return interpreter.submit(preprocess, arguments).result()


def report(rates: dict[int, list[float]]) -> None:
    """Print a row for each number of processes, and the ratio."""
    print_table(["processes", "median tokens/s", "slowest", "fastest"],
                [[str(num_process), *rate_cells(values)] for num_process, values in rates.items()])
    one, many = rates.values()
    print(f"ratio {ratio_of_pairs(many, one)}")


def main() -> None:
    """The command line."""
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
        rates: dict[int, list[float]] = {1: [], arguments.num_process: []}
        for _ in range(arguments.runs):
            for num_process, values in rates.items():
                done = run_once(PreprocessArguments(input_glob, model_file, num_process=num_process,
                                                    output_file=f"{folder}/ids.mindrecord"))
                values.append(done.tokens / done.seconds)
        print(f"{done.documents:,} documents, {done.tokens:,} tokens")
        report(rates)


if __name__ == "__main__":
    run_program(main)
