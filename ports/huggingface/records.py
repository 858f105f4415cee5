"""Training data for `train`: records of ids from text, JSON lines and MindRecord files, and numbered batches."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ports.huggingface.mindrecord import RecordFile
from src.common.errors import InputError
from src.common.vocabulary import vocabulary_md5
from src.data.corpus import FORMS, Corpus
from src.data.encoding import DocumentEncoder, ExampleEncoder, Packer, chunks
from src.data.mindrecord import LOSS_MASK_COLUMN, record_files, vocabulary_of
from src.tokenization_jieba import JiebaTokenizer

IGNORED = -100  # label that PyTorch leaves out of the loss
_JSON = (".json", ".jsonl")


@dataclass(frozen=True)
class Ids:
    """The ids that a model's data has.

    Args:
        vocab_size: Ids are below it.
        pad: What follows it in the input does not count.
        document_end: Id after each document. Positions restart after it.
        answer_end: Id after each completion.
    """

    vocab_size: int
    pad: int
    document_end: int
    answer_end: int


class Row(NamedTuple):
    """A record: ids, int32 (S+1,), and which labels count, bool (S,)."""

    ids: np.ndarray
    counts: np.ndarray


class Records(Protocol):
    """Records that are read by their number."""

    def __len__(self) -> int: ...

    def read(self, record: int) -> Row:
        """Return a record."""
        ...


class _Encoded(NamedTuple):
    """Records in memory: ids, int32 (N, S+1), and which labels count, bool (N, S)."""

    ids: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, record: int) -> Row:
        return Row(self.ids[record], self.counts[record])


class _Stored:
    """Records of a MindRecord file."""

    def __init__(self, path: Path, column: str, width: int, vocab_size: int) -> None:
        self._path, self._column, self._width, self._vocab_size = path, column, width, vocab_size
        self._file = RecordFile(path)
        if column not in self._file.columns:
            raise InputError(f"{path} has no column '{column}'; it has {', '.join(self._file.columns)}")
        for record in {0, len(self) - 1} if len(self) else ():
            self.read(record)  # a file that was cut off has lost its last record

    def __len__(self) -> int:
        return len(self._file)

    def read(self, record: int) -> Row:
        columns = self._file.read(record)
        ids = columns[self._column]
        if len(ids) != self._width:
            needed = f"--seq-length {self._width - 1} needs {self._width}"
            raise InputError(f"{self._path}: record {record} has {len(ids)} ids; {needed}")
        _check_ids(ids, self._vocab_size, f"{self._path}: record {record}")
        mask = columns.get(LOSS_MASK_COLUMN)
        return Row(ids, np.ones(self._width - 1, bool) if mask is None else mask != 0)


def _check_ids(ids: np.ndarray, vocab_size: int, place: str) -> None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise InputError(f"{place} holds ids from {ids.min()} to {ids.max()}; the model has 0 to {vocab_size - 1}")


def read_records(
    patterns: Sequence[str],
    column: str,
    width: int,
    ids: Ids,
    model_md5: str,
    vocabulary: Callable[[], Path],
    tell: Callable[[str], None],
) -> list[Records]:
    """Open MindRecord files, and encode texts (.txt: blank lines separate documents) and JSON lines.

    JSON lines are documents, {"text"}, or examples, {"prompt", "completion"}, whose prompts do not count. Documents are
    joined and cut into records; an example gets a record of its own.

    Args:
        patterns: Files, folders of MindRecord files, and patterns of text files.
        column: Column of the ids in MindRecord files.
        width: Ids of a record, S+1.
        ids: The ids of the model.
        model_md5: MD5 of the model's vocabulary; empty if it is unknown.
        vocabulary: Finds the vocabulary, if there is text.
        tell: Is called with a line about what was read and dropped.

    Raises:
        InputError: There is no such file, it cannot be read, or it does not fit the model.
    """
    records: list[Records] = []
    tokenizer: JiebaTokenizer | None = None
    for pattern in patterns:
        found = sorted(Path(path) for path in glob(pattern, recursive=True))
        if not found:
            raise InputError(f"--data-path {pattern} matches no file")
        for path in found:
            if path.suffix in (*_JSON, ".txt"):
                if tokenizer is None:
                    file = vocabulary()
                    tokenizer = JiebaTokenizer(file)
                    if tokenizer.vocab_size > ids.vocab_size:
                        sizes = f"{tokenizer.vocab_size} pieces, but the model only {ids.vocab_size} ids"
                        raise InputError(f"the vocabulary {file} has {sizes}")
                    model_md5 = model_md5 or vocabulary_md5(file)
                records.append(_encode(path, tokenizer, width, ids, tell))
                continue
            for file in record_files(path):
                if model_md5 and vocabulary_of(file) not in ("", model_md5):
                    raise InputError(f"{file} was written with another vocabulary than the model's; write it again")
                records.append(_Stored(file, column, width, ids.vocab_size))
                tell(f"{file}: {len(records[-1]):,} records")
    return records


def _encode(path: Path, tokenizer: JiebaTokenizer, width: int, ids: Ids, tell: Callable[[str], None]) -> _Encoded:
    """Encode a file of text."""
    kind = _kind_of(path)
    form = FORMS[kind]
    encode = (
        ExampleEncoder(tokenizer, ids.answer_end, width)
        if kind == "finetune"
        else DocumentEncoder(tokenizer, ids.document_end, form.clean)
    )
    packer, rows, masks, texts, lost = Packer(width), [], [], 0, Counter[str]()
    for encoded in map(encode, chunks(Corpus([path], form))):
        rows.append(packer.add(encoded.ids) if encoded.loss_mask is None else encoded.ids)
        masks.append(np.ones_like(rows[-1][:, 1:]) if encoded.loss_mask is None else encoded.loss_mask)
        texts += encoded.documents
        lost += encoded.lost
    result = _Encoded(
        np.concatenate([np.empty((0, width), np.int32), *rows]),
        np.concatenate([np.empty((0, width - 1), np.int32), *masks]) != 0,
    )
    if kind == "finetune":
        told = f"{texts:,} examples; dropped {texts - len(result):,} too long for a record"
    else:
        told = f"{texts:,} documents; dropped {len(packer.rest):,} tokens after the last whole record"
    told += f"; lost {lost.total():,} characters that the vocabulary lacks" if lost else ""
    tell(f"{path}: {len(result):,} records of {width} from {told}")
    return result


def _kind_of(path: Path) -> str:
    """Return the form of a text file. That of JSON lines shows in the first one."""
    if path.suffix not in _JSON:
        return "text"
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return "finetune" if '"completion"' in first else "jsonl"


class Batches:
    """Batches of records. The number of a batch determines its content, so that a run can resume at any batch.

    The generator seeded with (seed, e) gives the order of epoch e, as in this project's `train.py`. Records that do not
    fill a batch are left out of the epoch.

    Args:
        records: All records.
        size: Records of a batch on all data-parallel ranks.
        ids: The ids of the model.
        seed: Random seed.

    Raises:
        InputError: The records do not fill a batch.
    """

    def __init__(self, records: Sequence[Records], size: int, ids: Ids, seed: int) -> None:
        self._records, self._size, self._ids, self._seed = records, size, ids, seed
        self._ends = np.cumsum([len(some) for some in records])
        self.num_records = int(self._ends[-1])
        self.per_epoch = self.num_records // size
        if not self.per_epoch:
            raise InputError(f"--data-path has {self.num_records} records, fewer than one batch of {size}")

    def iterate(self, first: int, rank: int, ranks: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield this rank's rows of batches first, first + 1, ... without end.

        Yields:
            Inputs, positions and labels, int64 (B, S).
        """
        epoch, batch = divmod(first, self.per_epoch)
        mine = self._size // ranks
        while True:
            order = np.random.default_rng((self._seed, epoch)).permutation(self.num_records)
            for number in range(batch, self.per_epoch):
                begin = number * self._size + rank * mine
                yield self._batch(order[begin : begin + mine])
            epoch, batch = epoch + 1, 0

    def _batch(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = []
        for number in numbers:
            file = int(np.searchsorted(self._ends, number, side="right"))
            rows.append(self._records[file].read(int(number - (self._ends[file - 1] if file else 0))))
        ids, counts = (np.stack(column) for column in zip(*rows, strict=True))
        inputs = ids[:, :-1].astype(np.int64)
        labels = np.where(counts & (inputs != self._ids.pad), ids[:, 1:].astype(np.int64), IGNORED)
        return inputs, _positions(inputs, self._ids.document_end), labels


def _positions(inputs: np.ndarray, document_end: int) -> np.ndarray:
    """Count tokens (B, S) from 0, anew after each end of a document."""
    place = np.arange(inputs.shape[1])
    begins = np.pad(inputs[:, :-1] == document_end, ((0, 0), (1, 0)))
    return place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)
