"""TNEWS as records: `python -m ports.mindformers.tnews_data_process --help`, with MindFormers' flags."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ports.mindformers.evaluation_records import Columns, padded, parser_of, write
from src.common.errors import InputError, run_program


def _records(prompting: Any, items: Sequence[Any]) -> Iterator[Columns]:
    """Yield input_ids and input_mask of the candidates, one behind the other, and the number of the right one."""
    length = prompting.seq_length
    for item in items:
        requests = prompting.requests(item.number, item.example)
        masks = [np.zeros(length, np.int32) for _ in requests]
        for mask, request in zip(masks, requests, strict=True):
            mask[request.start : len(request.tokens)] = 1
        yield {
            "input_ids": np.concatenate([padded(list(one.tokens), length, prompting.pad_token) for one in requests]),
            "input_mask": np.concatenate(masks),
            "labels": np.array([list(item.example.labels).index(item.example.answer)], np.int32),
        }


def _check_labels(path: Path) -> None:
    """Raise InputError if a file of labels names one that is not TNEWS's."""
    from src.evaluation.tasks.files import records
    from src.evaluation.tasks.tnews import LABELS

    for record in records(path):
        record.choice("label_desc", LABELS)


def main() -> None:
    """Parse the command line, and write the records."""
    parser = parser_of("tnews_data_process", __doc__.split(":")[0])
    parser.add_argument("--input_file", required=True, metavar="FILE", help="dev.json of TNEWS")
    parser.add_argument(
        "--label_file", metavar="FILE", help="labels.json of TNEWS, to check that they are the known ones"
    )
    parser.add_argument("--shots", type=int, default=1, help="headlines that are shown before each (%(default)s)")
    arguments = parser.parse_args()
    if arguments.label_file:
        if not Path(arguments.label_file).is_file():
            raise InputError(f"--label_file {arguments.label_file} is not there")
        _check_labels(Path(arguments.label_file))
    write(arguments, "tnews", Path(arguments.input_file), _records)


if __name__ == "__main__":
    run_program(main)
