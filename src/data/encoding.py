"""Encode chunks of text as ids. This is the work of the worker processes of `src.preprocess`."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from src.data.corpus import Corpus, Example, Piece
from src.tokenization import Tokenizer

CHUNK_CHARS = 32_768
Item = TypeVar("Item", Piece, Example)


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """The text that a worker takes at once.

    Args:
        items: Pieces of documents, or examples.
        weight: Characters of text.
        position: Bytes of the corpus that have been read up to the end of this chunk.
    """

    items: list[Item]
    weight: int
    position: int


def chunks(corpus: Corpus) -> Iterator[Chunk]:
    """Group the corpus into chunks of about CHUNK_CHARS characters."""
    items, num_chars = [], 0
    for item in corpus:
        items.append(item)
        num_chars += item.num_chars
        if num_chars >= CHUNK_CHARS:
            yield Chunk(items, num_chars, corpus.bytes_read)
            items, num_chars = [], 0
    if items:
        yield Chunk(items, num_chars, corpus.bytes_read)


class Records(NamedTuple):
    """The result of encoding one chunk.

    Args:
        documents: Number of documents that end in the chunk, or of examples in it.
        tokens: Number of ids that the text gives.
        lost: How often the text holds each character that the vocabulary lacks.
        ids: int32. Documents give (tokens,), examples give (records, seq_length).
        loss_mask: int32 (records, seq_length - 1), 1 where the label counts. None for documents.
    """

    documents: int
    tokens: int
    lost: Counter[str]
    ids: np.ndarray
    loss_mask: np.ndarray | None = None


class DocumentEncoder:
    """Encodes pieces of documents, with the id `eot` after each document.

    Args:
        tokenizer: Turns text into ids.
        eot: Id that follows each document.
        clean: Function that is applied to each piece before it is tokenized.
    """

    def __init__(self, tokenizer: Tokenizer, eot: int, clean: Callable[[str], str]) -> None:
        self._tokenizer, self._eot, self._clean = tokenizer, eot, clean

    def __call__(self, chunk: Chunk[Piece]) -> Records:
        """Return the ids of all pieces in one row."""
        ids: list[int] = []
        lost = Counter[str]()
        for text, ends_document in chunk.items:
            cleaned = self._clean(text)
            ids += self._tokenizer.encode(cleaned)
            lost.update(self._tokenizer.lost(cleaned))
            if ends_document:
                ids.append(self._eot)
        return Records(sum(piece.ends_document for piece in chunk.items), len(ids), lost, np.array(ids, np.int32))


class ExampleEncoder:
    """Encodes fine-tuning examples as one padded record each. Examples longer than a record are dropped.

    Args:
        tokenizer: Turns text into ids. Its `pad_id` fills a record; `eot` does if there is none.
        eot: Id that follows each completion.
        seq_length: Ids of a record.
    """

    def __init__(self, tokenizer: Tokenizer, eot: int, seq_length: int) -> None:
        self._tokenizer, self._eot, self._seq_length = tokenizer, eot, seq_length
        self._pad = eot if tokenizer.pad_id is None else tokenizer.pad_id

    def __call__(self, chunk: Chunk[Example]) -> Records:
        """Return a row for each example that fits in a record."""
        rows, masks, tokens, lost = [], [], 0, Counter[str]()
        for prompt, completion in chunk.items:
            lost.update(self._tokenizer.lost(prompt + completion))
            prompt_ids = self._tokenizer.encode(prompt)
            ids = [*prompt_ids, *self._tokenizer.encode(completion), self._eot]
            tokens += len(ids)
            padding = self._seq_length - len(ids)
            if padding < 0:
                continue
            labels = np.arange(1, self._seq_length)
            rows.append(ids + [self._pad] * padding)
            masks.append((labels >= len(prompt_ids)) & (labels < len(ids)))
        return Records(
            len(chunk.items),
            tokens,
            lost,
            np.array(rows, np.int32).reshape(-1, self._seq_length),
            np.array(masks, np.int32).reshape(-1, self._seq_length - 1),
        )


class Packer:
    """Cuts a stream of ids into rows of equal width.

    Args:
        width: Ids of a row.

    Attributes:
        rest: int32 ids that do not fill a row yet.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self.rest = np.empty(0, np.int32)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Append `ids` to the stream, and return the rows that are now complete, int32 (rows, width)."""
        ids = np.concatenate([self.rest, ids])
        whole = len(ids) // self._width * self._width
        self.rest = ids[whole:]
        return ids[:whole].reshape(-1, self._width)
