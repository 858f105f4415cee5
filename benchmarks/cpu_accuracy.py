"""Accuracy of quantised models: `python -m benchmarks.cpu_accuracy --checkpoint RUN --text FILE`. See docs/cpu.md.

A checkpoint is quantised in several ways. Each quantised model reads the same held-out documents, and is compared with
the same model in float32.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.settings import GenerationConfig
from src.common.tables import table
from src.cpu.quantize import QuantizeArguments, quantize
from src.cpu.runtime import CpuRuntime
from src.cpu.weight_file import WEIGHTS_FILE
from src.inference.loop import generate_tokens
from src.inference.sampling import log_normalizer


@dataclass
class BenchmarkArguments:
    """Compare perplexity, logits and tokens of quantised models with those of the model in float32.

    Args:
        checkpoint: A training run's output folder, or a checkpoint together with --tokenizer.
        text: File of held-out documents, separated by blank lines.
        tokenizer: Folder of vocab.model. Default: the run's.
        formats: Formats as BITS:BLOCK. A letter `a` after it means a zero point for each block, `t` a word embedding
            in 4 bits.
        documents: Number of documents to read, from the first.
        continued: Number of documents whose beginnings are continued greedily.
    """

    checkpoint: str
    text: str
    tokenizer: str = ""
    formats: list[str] = field(
        default_factory=lambda: ["8:32", "8:128", "8:256", "4:16", "4:32", "4:32a", "4:32t", "4:64", "4:128", "4:128a"]
    )
    documents: int = 400
    continued: int = 40

    def __post_init__(self) -> None:
        for text in self.formats:
            bits, _, block = text.rstrip("at").partition(":")
            if bits not in ("4", "8") or not block.isdecimal():
                raise InputError(f"--formats has '{text}'; one looks like 8:128, 4:32 or 4:32a")
        whole_numbers(1, 1 << 20, self, "documents", "continued")


class Readings:
    """Logits and continuations of a model for the documents.

    Args:
        folder: Folder of a quantised model.
        documents: Ids of each document, with the end token.
        continued: Number of documents to continue.
    """

    def __init__(self, folder: Path, documents: list[list[int]], continued: int):
        self.runtime = CpuRuntime(folder)
        self.bytes = (folder / WEIGHTS_FILE).stat().st_size
        self.documents = documents
        prompts = [document[: len(document) // 4 + 1] for document in documents[:continued]]
        config = GenerationConfig(max_new_tokens=32, end_token=self.runtime.manifest.end_token)
        self.continuations = [generate_tokens(self.runtime, [prompt], config, 0)[0][0].tokens for prompt in prompts]

    def logits(self) -> Iterator[np.ndarray]:
        """Yield the logits (n - 1, V) of each document of n tokens."""
        return (self.runtime.logits(document[:-1]) for document in self.documents)


def read_documents(path: str) -> list[str]:
    """Read the documents of a file.

    Raises:
        InputError: The file can't be read, or holds no document.
    """
    try:
        documents = [part.strip() for part in Path(path).read_text(encoding="utf-8").split("\n\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--text {path} can't be read as UTF-8 text: {error}") from error
    documents = [document for document in documents if document]
    if not documents:
        raise InputError(f"--text {path} holds no document")
    return documents


def compare(reference: Readings, other: Readings) -> list[str]:
    """Return cells of the table: perplexity, error of the logits, agreement of the top token and of continuations."""
    losses, errors, squares, agreed, count = 0.0, 0.0, 0.0, 0, 0
    pairs = zip(reference.documents, reference.logits(), other.logits(), strict=True)
    for document, expected, found in tqdm(pairs, total=len(reference.documents), disable=None):
        labels = document[1:]
        losses -= (found[np.arange(len(labels)), labels] - log_normalizer(found)).sum()
        errors += np.square(found - expected, dtype=np.float64).sum()
        squares += np.square(expected - expected.mean(-1, keepdims=True), dtype=np.float64).sum()
        agreed += int((found.argmax(-1) == expected.argmax(-1)).sum())
        count += len(labels)
    same = [
        one == another
        for ours, theirs in zip(other.continuations, reference.continuations, strict=True)
        for one, another in zip(ours, theirs, strict=False)
    ]
    return [
        f"{np.exp(losses / count):.3f}",
        f"{np.sqrt(errors / squares):.2%}",
        f"{agreed / count:.2%}",
        f"{np.mean(same):.1%}",
    ]


def main() -> None:
    """Parse the command line, measure, and print the table."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.cpu_accuracy")
    texts = read_documents(arguments.text)[: arguments.documents]
    with tempfile.TemporaryDirectory() as folder:

        def made(name: str, **settings: object) -> Path:
            output = Path(folder) / name.replace(":", "_")
            quantize(QuantizeArguments(arguments.checkpoint, str(output), tokenizer=arguments.tokenizer, **settings))
            return output

        first = made("32", bits=32)
        runtime = CpuRuntime(first)
        tokenizer, longest = runtime.load_tokenizer(), runtime.seq_length
        documents = [[*tokenizer.encode(text), runtime.manifest.end_token][: longest + 1] for text in texts]
        documents = [document for document in documents if len(document) > 1]
        reference = Readings(first, documents, arguments.continued)
        rows = [["float32", f"{reference.bytes / 2**20:.1f}", *compare(reference, reference)]]
        for text in arguments.formats:
            bits, _, block = text.rstrip("at").partition(":")
            other = Readings(
                made(
                    text,
                    bits=int(bits),
                    block_size=int(block),
                    asymmetric="a" in text,
                    table_bits=4 if "t" in text else 8,
                ),
                documents,
                arguments.continued,
            )
            rows.append([text, f"{other.bytes / 2**20:.1f}", *compare(reference, other)])
    base = float(rows[0][2])
    for row in rows:
        row.insert(3, f"{float(row[2]) / base - 1:+.2%}")
    print(f"{len(documents)} documents, {sum(map(len, documents)):,} tokens")
    print(
        table(
            [
                "bits:block",
                "MiB",
                "perplexity",
                "change",
                "logits' rms error",
                "same likeliest token",
                "same tokens in continuations",
            ],
            rows,
        ),
        flush=True,
    )


if __name__ == "__main__":
    run_program(main)
