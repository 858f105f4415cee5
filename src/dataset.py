"""Read batches from MindRecord files. Each batch of each epoch has a number, so that a run can resume at any batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Tensor

from src.common.errors import InputError
from src.data.mindrecord import check_files, outermost_records, read_records, record_files
from src.pangu_alpha_config import RunConfig

NO_RECORD = -1  # takes the place of a record in a batch that is not full


def documents_of(ids: np.ndarray, eod_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the documents of each row. The end of document itself still belongs to the document that it ends.

    Args:
        ids: int32 (B, S+1). The last column is only a label.
        eod_token: Id that ends a document.

    Returns:
        position_ids, int32 (B, S), which restart at 0 in each document; and the numbers of the documents, int32 (B, S).
    """
    inputs = ids[:, :-1]
    ends = inputs == eod_token
    begins = np.pad(ends[:, :-1], ((0, 0), (1, 0)))
    document = np.cumsum(begins, axis=1, dtype=np.int32)
    place = np.arange(inputs.shape[1], dtype=np.int32)
    start = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return place - start, document


def eod_reset(ids: np.ndarray, eod_token: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute positions and an attention mask that restart after each end of document.

    Returns:
        position_ids, int32 (B, S), and attention_mask, int8 (B, S, S): 1 where a query (row) may attend to a key
        (column). A token attends to itself and to the tokens before it in the same document.
    """
    position_ids, document = documents_of(ids, eod_token)
    return position_ids, attention_mask_of(document)


def causal(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute positions and an attention mask that ignore documents. Shapes and dtypes are those of `eod_reset`."""
    position_ids, document = one_document(ids)
    return position_ids, attention_mask_of(document)


def one_document(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `documents_of` does, for rows of one document each."""
    batch, length = ids.shape[0], ids.shape[1] - 1
    position_ids = np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length))
    return position_ids.copy(), np.zeros((batch, length), np.int32)


def attention_mask_of(document: np.ndarray) -> np.ndarray:
    """Return the attention mask of documents with these numbers (B, S): int8 (B, S, S)."""
    place = np.arange(document.shape[1], dtype=np.int32)
    may_attend = document[:, :, None] == document[:, None, :]
    may_attend &= place[:, None] >= place
    return may_attend.view(np.int8)


def document_ends(document: np.ndarray, most: int, rows: int) -> np.ndarray:
    """Return where documents end, for an operator that takes a device's rows as one long row.

    Args:
        document: Numbers of the documents, int32 (B, S).
        most: Largest number of documents in a row.
        rows: Rows that a device computes together. They follow each other.

    Returns:
        int64 (B, most): one more than the place of each document's last token, counted from the first token of the
        rows that are computed together. The last end is repeated.

    Raises:
        InputError: A row has more documents.
    """
    batch, length = document.shape
    found = int(document[:, -1].max()) + 1
    if found > most:
        raise InputError(
            f"a training record holds {found} documents, more than parallel.most_documents {most}; give "
            f"--parallel.most_documents {found}, or --parallel.attention plain"
        )
    sizes = (document[:, :, None] == np.arange(most)).sum(1)  # (B, most)
    return np.cumsum(sizes, axis=1) + (np.arange(batch) % rows * length)[:, None]


@dataclass
class Batch:
    """A batch of records.

    Args:
        ids: int32 (B, S+1). The inputs are ids[:, :-1], the labels ids[:, 1:].
        loss_mask: float32 (B, S), 1 where the label counts. None means that all labels count.
    """

    ids: np.ndarray
    loss_mask: np.ndarray | None = None

    def tensors(self, config: RunConfig) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return ids, position_ids, attention_mask and loss_mask, as PanguAlphaWithLoss takes them.

        Documents may take the place of the mask: see `RunConfig.attention_input`.
        """
        model, parallel = config.model, config.parallel
        position_ids, document = documents_of(self.ids, model.eod_token) if model.eod_reset else one_document(self.ids)
        if config.attention_input == "mask":
            attention = attention_mask_of(document)
        elif config.attention_input == "documents":
            attention = document
        else:
            rows = config.training.batch_size // parallel.micro_batch_interleaved
            attention = document_ends(document, parallel.most_documents, rows)
        loss_mask = None if self.loss_mask is None else Tensor(self.loss_mask)
        return Tensor(self.ids), Tensor(position_ids), Tensor(attention), loss_mask


class TokenBatches:
    """Batches of the records of a MindRecord file, or of all MindRecord files of a folder, sorted by name.

    The number of a batch determines its content. On several ranks, a global batch has `rank_size * batch_size` records
    and is the same as on one rank with that batch size. Rank r takes `batch_size` rows of it from row `r * batch_size`.

    Args:
        path: MindRecord file with its .db beside it, or a folder of such files. src.preprocess makes them.
        column: Name of the column that holds the ids. A column `loss_mask` is read, too, if there is one.
        batch_size: Number of records in a batch of one rank.
        seq_length: The model's S. A record must have S+1 ids.
        vocab_size: Size of the model's vocabulary. Ids must be smaller.
        seed: Random seed of the order of the records.
        shuffle: Draw a new order for each epoch. False keeps the order of the files.
        rank: Number of this data-parallel rank, from 0.
        rank_size: Number of data-parallel ranks.
        fill_token: Id of the rows that fill up the last batch of `once`: the pad token, whose labels do not count. None
            drops the records that do not fill a batch.

    Raises:
        InputError: A file or a column is missing, a file is damaged, records have another length, or (without
            `fill_token`) there are fewer records than one batch needs. Iteration raises it for an id outside the
            vocabulary.
    """

    def __init__(
        self,
        path: str | Path,
        column: str,
        batch_size: int,
        seq_length: int,
        vocab_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        rank_size: int = 1,
        fill_token: int | None = None,
    ) -> None:
        self._files = record_files(path)
        self._width, self._vocab_size = seq_length + 1, vocab_size
        self._batch_size, self._rank, self._rank_size = batch_size, rank, rank_size
        self._seed, self._shuffle, self._fill_token = seed, shuffle, fill_token
        counts, self._columns = check_files(self._files, column)
        self._ends = np.cumsum(counts)
        if not self.batches_per_epoch and fill_token is None:
            raise InputError(
                f"{path} holds {self.num_records} records, fewer than one batch of "
                f"{batch_size * rank_size} (batch size {batch_size}, {rank_size} data-parallel ranks)"
            )
        self._check_outermost_records()

    @property
    def num_records(self) -> int:
        """Number of records in all files."""
        return int(self._ends[-1])

    @property
    def batches_per_epoch(self) -> int:
        """Number of whole batches in an epoch."""
        return self.num_records // (self._batch_size * self._rank_size)

    @property
    def dropped_per_epoch(self) -> int:
        """Number of records that an epoch drops, because they do not fill a batch. Shuffling drops others each time."""
        return self.num_records % (self._batch_size * self._rank_size)

    def iterate(self, start_batch: int = 0) -> Iterator[Batch]:
        """Yield batches start_batch, start_batch + 1, ... without end. Earlier records are not read."""
        epoch, first = divmod(start_batch, self.batches_per_epoch)
        while True:
            order = np.arange(self.num_records)
            if self._shuffle:
                order = np.random.default_rng((self._seed, epoch)).permutation(self.num_records)
            yield from self._read(order, first, self.batches_per_epoch)
            epoch, first = epoch + 1, 0

    def once(self, num_batches: int = 0) -> Iterator[Batch]:
        """Yield the first `num_batches` batches (0 means all) in the order of the files, for validation."""
        last = self.batches_per_epoch + (self._fill_token is not None and self.dropped_per_epoch > 0)
        return self._read(np.arange(self.num_records), 0, min(num_batches or last, last))

    def _read(self, order: np.ndarray, first: int, last: int) -> Iterator[Batch]:
        """Yield this rank's part of batches first to last - 1, with the records in this order."""
        missing = -len(order) % (self._rank_size * self._batch_size)
        grid = np.append(order, np.full(missing, NO_RECORD))
        mine = grid.reshape(-1, self._rank_size, self._batch_size)[first:last, self._rank]
        needed = mine[mine != NO_RECORD]
        rows = read_records(self._files, self._columns, needed) if len(needed) else iter(())
        for numbers in mine:
            records = numbers[numbers != NO_RECORD]
            columns = [list(column) for column in zip(*(next(rows) for _ in records), strict=True)]
            self._check(columns[0] if columns else [], records)
            yield self._batch(columns or [[] for _ in self._columns])

    def _batch(self, columns: list[list[np.ndarray]]) -> Batch:
        """Return a batch of some records. Rows that do not count fill it up."""
        ids, *loss_mask = columns
        missing = self._batch_size - len(ids)
        ids += [np.full(self._width, self._fill_token, np.int32) for _ in range(missing)]
        if not loss_mask:
            return Batch(np.stack(ids))
        masks = loss_mask[0] + [np.zeros(self._width - 1, np.int32) for _ in range(missing)]
        return Batch(np.stack(ids), np.stack(masks).astype(np.float32))

    def _check(self, ids: Sequence[np.ndarray], records: Sequence[int]) -> None:
        """Raise InputError for the first record that has the wrong length or an id outside the vocabulary."""
        for record, row in zip(records, ids, strict=True):
            problem = None
            if row.shape != (self._width,):
                problem = f"has {row.size} ids; seq_length {self._width - 1} needs {self._width}"
            elif row.min() < 0 or row.max() >= self._vocab_size:
                problem = (
                    f"holds ids from {row.min()} to {row.max()}; vocab_size {self._vocab_size} has 0 to "
                    f"{self._vocab_size - 1}"
                )
            if problem:
                file = int(np.searchsorted(self._ends, record, side="right"))
                number = int(record - (self._ends[file - 1] if file else 0))
                raise InputError(f"{self._files[file]}: record {number} {problem}")

    def _check_outermost_records(self) -> None:
        """Check the first and the last record of each file. A file that was cut off has lost its last record."""
        begin = 0
        for file, end in zip(self._files, self._ends.tolist(), strict=True):
            numbers, rows = outermost_records(file, self._columns, end - begin)
            self._check([row[0] for row in rows], [begin + number for number in numbers])
            begin = end
