"""Raw text to MindRecord: `python -m src.preprocess --input_glob 'data/*.txt' --model_file vocab.model`.

The ids of all documents, each ended by `eot`, make one long sequence, which is cut into records of `seq_length` ids.
Fine-tuning examples keep a record each. Reading and writing stay in this process; worker processes tokenize.
"""

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.data.corpus import FORMS, Corpus
from src.data.encoding import CHUNK_CHARS, DocumentEncoder, ExampleEncoder, Packer, chunks
from src.data.mindrecord import FORBIDDEN_IN_NAMES, LOSS_MASK_COLUMN, RecordWriter
from src.data.worker_pool import Workers
from src.tokenization import Tokenizer, load_tokenizer

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
        for chunk, encoded in workers.map(chunks(corpus)):
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
