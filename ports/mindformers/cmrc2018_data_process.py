"""CMRC2018 as records: `python -m ports.mindformers.cmrc2018_data_process --help`, with MindFormers' flags."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ports.mindformers.evaluation_records import Columns, padded, parser_of, write
from src.common.errors import InputError, run_program


def _records(prompting: Any, items: Sequence[Any]) -> Iterator[Columns]:
    """Yield input_ids, the padded prompt, and labels, the padded ids of the first answer.

    The answer has no punctuation that the metric drops. Its ids would be those of half-width marks, which it keeps.
    """
    from src.evaluation.tasks.metrics import PUNCTUATION

    texts = ["".join(char for char in item.example.answers[0] if char not in PUNCTUATION) for item in items]
    answers = [prompting.tokenizer.encode(text) for text in texts]
    longest = max(map(len, answers))
    for item, answer in zip(items, answers, strict=True):
        prompt = prompting.prompt(item.number, item.example)
        yield {
            "input_ids": padded(prompt, prompting.seq_length, prompting.pad_token),
            "labels": padded(answer, longest, prompting.pad_token),
        }


def main() -> None:
    """Parse the command line, and write the records."""
    parser = parser_of("cmrc2018_data_process", __doc__.split(":")[0])
    parser.add_argument("--train_file", metavar="FILE", help="train.json, from which demonstrations are drawn")
    parser.add_argument("--dev_file", required=True, metavar="FILE", help="dev.json of CMRC2018")
    parser.add_argument("--shots", type=int, default=0, choices=[0, 1, 5], help="demonstrations (%(default)s)")
    arguments = parser.parse_args()
    dev = Path(arguments.dev_file)
    if arguments.shots and Path(arguments.train_file or "").resolve() != (dev.parent / "train.json").resolve():
        raise InputError(f"--train_file: demonstrations are drawn from {dev.parent / 'train.json'}; put the file there")
    if arguments.train_file and not arguments.shots:
        print("note: --train_file is not read, since --shots is 0", file=sys.stderr)
    write(arguments, "cmrc2018", dev, _records)


if __name__ == "__main__":
    run_program(main)
