"""The benchmarks of `eval.py` as MindRecord files for MindFormers' metrics: what both programs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ports.mindformers.pretrained import DOWNLOADS
from src.common.errors import InputError, Parser
from src.tokenization_jieba import MODEL_NAME

Columns = dict[str, np.ndarray]


def parser_of(name: str, description: str) -> Parser:
    """Return a command line with the flags of both programs."""
    parser = Parser(prog=f"python -m ports.mindformers.{name}", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--output_file", required=True, metavar="FILE", help="MindRecord file to write")
    add("--vocab_file", default=str(DOWNLOADS / MODEL_NAME), metavar="FILE", help="vocab.model (%(default)s)")
    add("--seq_length", type=int, default=1024, help="the model's seq_length (%(default)s)")
    add("--pad_token", type=int, default=6, help="id of padding (%(default)s)")
    add("--seed", type=int, default=0, help="seed of what is drawn, as eval.py's --seed (%(default)s)")
    add("--limit", type=int, default=0, help="number of examples; 0: all (%(default)s)")
    return parser


def write(
    arguments: argparse.Namespace, task: str, path: Path, records_of: Callable[[Any, Sequence[Any]], Iterator[Columns]]
) -> None:
    """Read the examples of a benchmark in MindFormers' form, as eval.py does, and write a record for each.

    Args:
        arguments: The command line of `parser_of`, with `shots`.
        task: Name of the benchmark.
        path: Its file.
        records_of: Yields the columns of each example, int32 (width,), from a `Prompting` and the items.

    Raises:
        InputError: A file is missing or damaged, or a text does not fit.
    """
    for name, least in (("seq_length", 8), ("limit", 0), ("shots", 0), ("seed", 0), ("pad_token", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name} is {getattr(arguments, name)}, but must be at least {least}")
    if not path.is_file():
        raise InputError(f"{path} is not there; eval.py --task {task} says where it is published")
    from src.common.vocabulary import vocabulary_md5
    from src.data.mindrecord import RecordWriter
    from src.evaluation.evaluate import read_items
    from src.evaluation.prompts import Demonstrations, Prompting
    from src.evaluation.tasks.registry import find_task
    from src.evaluation.tasks.task import Reading
    from src.tokenization_jieba import JiebaTokenizer

    found, tokenizer = find_task(task, "mindformers"), JiebaTokenizer(arguments.vocab_file)
    reading = Reading(seed=arguments.seed, shots=arguments.shots)
    items = read_items(found, path, "dev", reading, arguments.limit)
    prompting = Prompting(found, tokenizer, arguments.seq_length, arguments.pad_token, "mean", Demonstrations())
    records = records_of(prompting, items)
    first = next(records)
    widths = {name: len(value) for name, value in first.items()}
    output = Path(arguments.output_file)
    with RecordWriter(output, widths, vocabulary_md5(arguments.vocab_file)) as writer:
        for record in (first, *records):
            writer.write(*(column[None] for column in record.values()))
        writer.finish()
    print(*prompting.remarks(), f"{output}: {len(items)} examples of {found.title}", sep="\n")


def padded(ids: list[int], length: int, pad_token: int) -> np.ndarray:
    """Return ids padded on the right, int32 (length,)."""
    row = np.full(length, pad_token, np.int32)
    row[: len(ids)] = ids
    return row
