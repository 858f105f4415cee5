"""Convert raw text to MindRecord: `python -m src.preprocess --input_glob 'data/*.txt' --model_file vocab.model`.

The ids of all documents, each followed by `eot`, form one long sequence, which is cut into records of `seq_length` ids.
Each fine-tuning example gets a record of its own. This process reads and writes; worker processes tokenize.
"""

import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.container import count_cores
from src.common.errors import InputError, run_program
from src.common.vocabulary import vocabulary_md5
from src.data.corpus import FORMS, Corpus
from src.data.encoding import CHUNK_CHARS, DocumentEncoder, ExampleEncoder, Packer, chunks
from src.data.mindrecord import FORBIDDEN_IN_NAMES, LOSS_MASK_COLUMN, RecordWriter
from src.data.worker_pool import Workers
from src.tokenization import Tokenizer, load_tokenizer

CHARS_A_WORKER = 16 * CHUNK_CHARS  # enough work for the seconds in which this process imports MindSpore
SHOWN_LOST = 5  # characters in the closing line
TERMINATED_STATUS = 128 + signal.SIGTERM


@dataclass
class PreprocessArguments:
    """Tokenize text files and write them as MindRecord.

    Args:
        input_glob: Pattern of the UTF-8 text files, such as 'data/*.txt'; ** matches nested folders. Quote it, so that
            the shell does not expand it.
        model_file: Vocabulary of the tokenizer: the file vocab.model for jieba, the folder of vocab.json and merges.txt
            for gpt.
        dataset_type: Form of the text. text (or openwebtext): blank lines separate documents. wikitext (or wiki): an
            article begins with a line ` = Title = `. lines: each line is a document, as the ModelZoo's texts have it.
            lambada: as lines, but a line may also be {"text"}. jsonl: each line is a document, as {"text"}. finetune:
            each line is an example, as {"prompt", "completion"}; it gets a record of its own and a column loss_mask.
        output_file: MindRecord file to write. Its index gets the same name with .db added.
        tokenizer: Kind of tokenizer: jieba (SentencePiece over jieba words, as the released models have it) or gpt
            (GPT-2's byte-level BPE).
        eot: Id that follows each document or completion. The default for gpt is <|endoftext|>. The default for jieba is
            <pad> (6) after a document, as in the released models, and <eot> (9) after a completion: generation stops
            there.
        data_column_name: Name of the MindRecord column that holds the ids.
        seq_length: Number of ids in a record: the model's seq_length plus one, for the last label.
        num_process: Number of processes that tokenize. 0 means one per processor core; 1 means no extra process.
    """

    input_glob: str
    model_file: str
    dataset_type: Literal["text", "openwebtext", "lines", "wikitext", "wiki", "lambada", "jsonl", "finetune"] = "text"
    output_file: str = "./output/pangu.mindrecord"
    tokenizer: Literal["jieba", "gpt"] = "jieba"
    eot: int | None = None
    data_column_name: str = "input_ids"
    seq_length: int = 1025
    num_process: int = 0

    def __post_init__(self) -> None:
        whole_numbers(2, 1 << 20, self, "seq_length")
        whole_numbers(0, 4096, self, "num_process")
        if not re.fullmatch(r"\w+", self.data_column_name, re.ASCII) or self.data_column_name == LOSS_MASK_COLUMN:
            raise InputError(
                f"--data_column_name '{self.data_column_name}' must consist of letters, digits and _ "
                f"(and not {LOSS_MASK_COLUMN})"
            )
        name = os.path.basename(self.output_file)
        if not name or set(FORBIDDEN_IN_NAMES) & set(name) or os.path.isdir(self.output_file):
            raise InputError(
                f"--output_file '{self.output_file}' must be a file name without any of {FORBIDDEN_IN_NAMES}"
            )
        self.num_process = self.num_process or count_cores()


class Summary(NamedTuple):
    """Counts of one run.

    Args:
        documents: Documents, or fine-tuning examples, that were tokenized.
        tokens: Ids of all of them, including the eot of each.
        records: Records that were written.
        dropped: Ids after the last whole record, or examples longer than a record.
        seconds: Wall-clock time in seconds.
        lost: Characters that the vocabulary lacks, with how often they are in the text.
    """

    documents: int
    tokens: int
    records: int
    dropped: int
    seconds: float
    lost: Counter[str]


def preprocess(arguments: PreprocessArguments) -> Summary:
    """Tokenize the files and write the MindRecord. Its content does not depend on the number of processes.

    If the run is interrupted, an earlier output file stays as it was.

    Raises:
        InputError: There are no files, a file cannot be read, eot is outside the vocabulary, or the text does not fill
            one record.
    """
    started = time.perf_counter()
    files = sorted(Path(path) for path in glob(arguments.input_glob, recursive=True) if os.path.isfile(path))
    if not files:
        raise InputError(f"--input_glob '{arguments.input_glob}' matches no file")
    form, width = FORMS[arguments.dataset_type], arguments.seq_length
    corpus = Corpus(files, form)
    tokenizer = load_tokenizer(arguments.tokenizer, arguments.model_file)
    tokenizer.encode("序")  # makes jieba load its dictionary now, once for all workers
    eot = _end_of_text(arguments, tokenizer)
    widths = {arguments.data_column_name: width}
    packer = None
    if arguments.dataset_type == "finetune":
        encoder = ExampleEncoder(tokenizer, eot, width)
        widths[LOSS_MASK_COLUMN] = width - 1
    else:
        encoder = DocumentEncoder(tokenizer, eot, form.clean)
        packer = Packer(width)

    documents, tokens, lost = 0, 0, Counter[str]()
    with (
        Workers(encoder, arguments.num_process, CHARS_A_WORKER) as workers,
        RecordWriter(Path(arguments.output_file), widths, vocabulary_md5(arguments.model_file)) as writer,
        tqdm(total=corpus.num_bytes, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for chunk, encoded in workers.map(chunks(corpus)):
            writer.write(*([packer.add(encoded.ids)] if packer else [encoded.ids, encoded.loss_mask]))
            documents += encoded.documents
            tokens += encoded.tokens
            lost += encoded.lost
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
    return Summary(documents, tokens, writer.num_records, dropped, time.perf_counter() - started, lost)


def _end_of_text(arguments: PreprocessArguments, tokenizer: Tokenizer) -> int:
    eot = arguments.eot
    if eot is None:
        eot = tokenizer.eot_id if arguments.dataset_type == "finetune" else tokenizer.pad_id
    if eot is None:
        raise InputError(f"{arguments.model_file} has no piece for the end of a text; name one with --eot")
    if not 0 <= eot < tokenizer.vocab_size:
        raise InputError(
            f"--eot {eot} is outside the vocabulary of {arguments.model_file}, 0 to {tokenizer.vocab_size - 1}"
        )
    return eot


def main() -> None:
    """Run the command line."""
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
        f"{arguments.seq_length}; dropped {done.dropped:,} {dropped}; {_told_lost(done.lost)}{done.seconds:.1f} s, "
        f"{done.tokens / done.seconds:,.0f} tokens/s"
    )


def _told_lost(lost: Counter[str]) -> str:
    """Return the part of the closing line about characters that the vocabulary lacks; empty if there are none."""
    if not lost:
        return ""
    examples = [
        f"{character if character.isprintable() else ''}(U+{ord(character):04X}) {number:,}"
        for character, number in lost.most_common(SHOWN_LOST)
    ]
    return (
        f"lost {lost.total():,} characters that the vocabulary lacks, {len(lost):,} different ones: "
        f"{', '.join(examples)}{', ...' * (len(lost) > SHOWN_LOST)}; "
    )


if __name__ == "__main__":
    run_program(main)
