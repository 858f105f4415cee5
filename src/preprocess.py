"""Raw text to MindRecord: `python -m src.preprocess --input_glob 'data/*.txt' --model_file vocab.model`.

The ids of all documents, each ended by `eot`, make one long sequence, which is cut into records of `seq_length` ids.
Fine-tuning examples keep a record each. Reading and writing stay in this process; worker processes tokenize.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.data.corpus import FORMS, Corpus, Example, Piece
from src.data.mindrecord import FORBIDDEN_IN_NAMES, LOSS_MASK_COLUMN, RecordWriter
from src.data.worker_pool import Workers
from src.tokenization import Tokenizer, load_tokenizer

CHUNK_CHARS = 32_768
CHARS_A_WORKER = 16 * CHUNK_CHARS  # some seconds of work, while this process imports MindSpore
TERMINATED_STATUS = 128 + signal.SIGTERM


@dataclass
class PreprocessArguments:
    """Tokenize text files and write them as MindRecord.

    Args:
        input_glob: The text files, UTF-8; quote it so that the shell leaves it alone.
        model_file: The vocabulary: vocab.model for jieba, the folder of vocab.json and merges.txt for gpt.
        dataset_type: text (also openwebtext): blank lines between documents. wikitext (also wiki): articles begin at
            ` = Title = `. lambada: a document a line, bare or {"text"}. jsonl: {"text"} a line. finetune:
            {"prompt", "completion"} a line, one example a record, with a loss_mask column.
        output_file: The MindRecord file; its index stands beside it, with .db added.
        tokenizer: jieba (SentencePiece over jieba words, the official one) or gpt (GPT-2 byte-level BPE).
        eot: Id put after each document or completion. When not given: <|endoftext|> for gpt; for jieba <pad> (6),
            as the released models have it, and <eot> (9) after a completion, for generation stops there.
        data_column_name: MindRecord column of the ids.
        seq_length: Ids a record: the model's seq_length and one more, for the last label.
        num_process: Processes that tokenize; 0 for one a processor core, 1 for none besides this one.
    """

    input_glob: str
    model_file: str
    dataset_type: Literal["text", "openwebtext", "wikitext", "wiki", "lambada", "jsonl", "finetune"] = "text"
    output_file: str = "./output/pangu.mindrecord"
    tokenizer: Literal["jieba", "gpt"] = "jieba"
    eot: int | None = None
    data_column_name: str = "input_ids"
    seq_length: int = 1025
    num_process: int = 0

    def __post_init__(self) -> None:
        if self.seq_length < 2:
            raise InputError(f"--seq_length is {self.seq_length}; it must be at least 2 (an input and a label)")
        if self.num_process < 0:
            raise InputError(f"--num_process is {self.num_process}; it must not be negative")
        if not re.fullmatch(r"\w+", self.data_column_name, re.ASCII) or self.data_column_name == LOSS_MASK_COLUMN:
            raise InputError(
                f"--data_column_name '{self.data_column_name}' must be of letters, digits and _ "
                f"(and not {LOSS_MASK_COLUMN})"
            )
        name = os.path.basename(self.output_file)
        if not name or set(FORBIDDEN_IN_NAMES) & set(name) or os.path.isdir(self.output_file):
            raise InputError(
                f"--output_file '{self.output_file}' must be a file with none of {FORBIDDEN_IN_NAMES} in its name"
            )
        self.num_process = self.num_process or len(os.sched_getaffinity(0))


class Summary(NamedTuple):
    """What a run read and wrote.

    Args:
        documents: Documents, or fine-tuning examples, tokenized.
        tokens: Ids of all of them, each document's eot counted.
        records: Records written.
        dropped: Ids after the last whole record, or examples longer than a record.
        seconds: Wall-clock time.
    """

    documents: int
    tokens: int
    records: int
    dropped: int
    seconds: float


class Chunk(NamedTuple):
    """As much text as a worker takes at once.

    Args:
        items: Pieces of documents, or examples.
        weight: Characters of text.
        position: Bytes of the corpus that are read with it.
    """

    items: list[Piece] | list[Example]
    weight: int
    position: int


def _chunks(corpus: Corpus) -> Iterator[Chunk]:
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
    """What one chunk of text becomes.

    Args:
        documents: Documents ended, or examples seen, in the chunk.
        tokens: Ids made.
        ids: int32; (tokens,) of documents, (records, seq_length) of examples.
        loss_mask: int32 (records, seq_length - 1) of examples, 1 where the label counts; None for documents.
    """

    documents: int
    tokens: int
    ids: np.ndarray
    loss_mask: np.ndarray | None = None


class DocumentEncoder:
    """Pieces of documents to their ids, `eot` after each document."""

    def __init__(self, tokenizer: Tokenizer, eot: int, clean: Callable[[str], str]) -> None:
        self._tokenizer, self._eot, self._clean = tokenizer, eot, clean

    def __call__(self, chunk: Chunk) -> Records:
        """The ids of all pieces in one row."""
        ids: list[int] = []
        for text, ends_document in chunk.items:
            ids += self._tokenizer.encode(self._clean(text))
            if ends_document:
                ids.append(self._eot)
        return Records(sum(piece.ends_document for piece in chunk.items), len(ids), np.array(ids, np.int32))


class ExampleEncoder:
    """Fine-tuning examples to one padded record each; examples longer than a record are left out."""

    def __init__(self, tokenizer: Tokenizer, eot: int, seq_length: int) -> None:
        self._tokenizer, self._eot, self._seq_length = tokenizer, eot, seq_length
        self._pad = eot if tokenizer.pad_id is None else tokenizer.pad_id

    def __call__(self, chunk: Chunk) -> Records:
        """A row for each example that fits."""
        rows, masks, tokens = [], [], 0
        for prompt, completion in chunk.items:
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
            np.array(rows, np.int32).reshape(-1, self._seq_length),
            np.array(masks, np.int32).reshape(-1, self._seq_length - 1),
        )


class Packer:
    """Cuts a stream of ids into rows; `rest` holds the ids (int32) that do not fill a row yet."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.rest = np.empty(0, np.int32)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Rows, int32 (rows, width), that `ids` completes."""
        ids = np.concatenate([self.rest, ids])
        whole = len(ids) // self._width * self._width
        self.rest = ids[whole:]
        return ids[:whole].reshape(-1, self._width)


def preprocess(arguments: PreprocessArguments) -> Summary:
    """Tokenize the files and write the MindRecord; its content does not depend on the number of processes.

    An interrupted run leaves an earlier output file as it was.

    Raises:
        InputError: No files, an unreadable one, an eot outside the vocabulary, too little text for one record.
    """
    started = time.perf_counter()
    files = sorted(Path(path) for path in glob(arguments.input_glob, recursive=True) if os.path.isfile(path))
    if not files:
        raise InputError(f"--input_glob '{arguments.input_glob}' matches no file")
    form, width = FORMS[arguments.dataset_type], arguments.seq_length
    corpus = Corpus(files, form)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.model_file)
    tokenizer.encode("序")  # jieba loads its dictionary at the first word: now, once for all workers
    eot = _end_of_text(arguments, tokenizer)
    widths = {arguments.data_column_name: width}
    packer = None
    if arguments.dataset_type == "finetune":
        encoder = ExampleEncoder(tokenizer, eot, width)
        widths[LOSS_MASK_COLUMN] = width - 1
    else:
        encoder = DocumentEncoder(tokenizer, eot, form.clean)
        packer = Packer(width)

    documents = tokens = 0
    with (
        Workers(encoder, arguments.num_process, CHARS_A_WORKER) as workers,
        RecordWriter(Path(arguments.output_file), widths) as writer,
        tqdm(total=corpus.num_bytes, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for chunk, encoded in workers.map(_chunks(corpus)):
            writer.write(*([packer.add(encoded.ids)] if packer else [encoded.ids, encoded.loss_mask]))
            documents += encoded.documents
            tokens += encoded.tokens
            bar.update(chunk.position - bar.n)
        if not writer.num_records:
            problem = (
                f"{tokens} tokens in {documents} documents do not fill one record of {width}; give more text "
                "or a smaller --seq_length"
                if packer
                else f"none of {documents} examples fits in a record of {width} tokens; give shorter ones or a "
                "larger --seq_length"
            )
            raise InputError(f"--input_glob '{arguments.input_glob}': {problem}")
        writer.finish()
    dropped = len(packer.rest) if packer else documents - writer.num_records
    return Summary(documents, tokens, writer.num_records, dropped, time.perf_counter() - started)


def _end_of_text(arguments: PreprocessArguments, tokenizer: Tokenizer) -> int:
    eot = arguments.eot
    if eot is None:
        eot = tokenizer.eot_id if arguments.dataset_type == "finetune" else tokenizer.pad_id
    if eot is None:
        raise InputError(f"{arguments.model_file} has no piece of its own for the end of a text; name one with --eot")
    if not 0 <= eot < tokenizer.vocab_size:
        raise InputError(
            f"--eot {eot} is outside the vocabulary of {arguments.model_file}, 0 to {tokenizer.vocab_size - 1}"
        )
    return eot


def main() -> None:
    """The command line."""
    arguments = parse(PreprocessArguments, "python -m src.preprocess")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_STATUS))
    done = preprocess(arguments)
    kind, dropped = (
        ("examples", "examples too long for a record")
        if arguments.dataset_type == "finetune"
        else ("documents", "tokens after the last whole record")
    )
    print(
        f"{arguments.output_file}: {done.documents:,} {kind}, {done.tokens:,} tokens -> {done.records:,} records of "
        f"{arguments.seq_length}; dropped {done.dropped:,} {dropped}; {done.seconds:.1f} s, "
        f"{done.tokens / done.seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    run_program(main)
