"""Train a vocabulary of any size for `JiebaTokenizer` on your own text.

    python -m src.train_tokenizer --input_glob 'data/*.txt' --vocab_size 2000 --output DIR

This writes DIR/vocab.model: a unigram SentencePiece model with the settings and special pieces of the official one
(<unk> 0, <s> 1, </s> 2, newline 3, space 4, <sep> 5, <pad> 6, <mask> 7, <eod> 8, <eot> 9). The same text and flags give
the same bytes.
"""

import glob
import io
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from sentencepiece import SentencePieceTrainer
from tqdm import tqdm

from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.files import written_whole
from src.common.reading import read_line
from src.tokenization_jieba import MODEL_NAME, NEWLINE_SYMBOL, SPACE_SYMBOL, JiebaTokenizer, words_for_sentencepiece

UNKNOWN_ID = 0
# SentencePiece gives these the ids 3, 4, ... after its own <unk>, <s> and </s>.
USER_SYMBOLS = [NEWLINE_SYMBOL, SPACE_SYMBOL, "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
NUM_SPECIAL = 3 + len(USER_SYMBOLS)
# SentencePiece drops sentences of more than 4192 bytes; 800 characters, each with a space, have at most 4000.
LINE_CHARACTERS = 800
# SentencePiece reserves U+2585 for itself, and drops sentences that contain it.
RESERVED_SYMBOL = "\u2585"


@dataclass
class TrainTokenizerArguments:
    """Train a vocab.model for the jieba tokenizer on text files.

    Args:
        input_glob: Pattern of the UTF-8 text files, such as 'data/*.txt'; ** matches nested folders. Quote it, so that
            the shell does not expand it.
        output: Folder in which vocab.model is written. It is made if it does not exist.
        vocab_size: Number of pieces, including the 10 special ones.
        model_type: Kind of SentencePiece model: unigram, as in the official vocab.model, or bpe, which makes longer
            pieces from a small corpus.
        character_coverage: Share of the text's characters that the pieces must cover, from 0.98 to 1. Rarer characters
            become <unk>.
        input_sentence_size: Number of lines (of at most 800 characters) to draw at random and train on. 0 means all
            lines. Training needs about 75 bytes of memory per drawn character: 1.5 GB for 200,000 lines of 100
            characters.
        seed: Random seed of that draw.
    """

    input_glob: str
    output: str
    vocab_size: int = 40000
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 0.9995
    input_sentence_size: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size <= NUM_SPECIAL:
            raise InputError(
                f"--vocab_size {self.vocab_size} leaves no room beside the {NUM_SPECIAL} special pieces; "
                "1000 or more is usual"
            )
        if not 0.98 <= self.character_coverage <= 1:
            raise InputError(f"--character_coverage is {self.character_coverage}; it must lie in [0.98, 1]")
        whole_numbers(0, 10_000_000, self, "vocab_size")
        whole_numbers(0, 10**12, self, "input_sentence_size")


class Corpus:
    """The lines of UTF-8 text files, read one at a time.

    Args:
        files: Paths of the files, in reading order.

    Attributes:
        num_lines: Number of lines so far that are not blank.
        characters: How often each character has occurred so far.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = files
        self.num_lines = 0
        self.characters: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        """Yield the lines that are not blank. Long lines come in parts of LINE_CHARACTERS.

        Raises:
            InputError: A file cannot be read or is not UTF-8.
        """
        for name in self.files:
            try:
                with open(name, encoding="utf-8-sig", newline="\n") as file:
                    for line in iter(partial(read_line, file, LINE_CHARACTERS), ""):
                        self.characters.update(line)
                        if not line.isspace():
                            self.num_lines += 1
                            yield line
            except UnicodeDecodeError as error:
                raise InputError(f"{name} is not UTF-8 text; convert it or leave it out of the pattern") from error
            except OSError as error:
                raise InputError(f"{name} cannot be read: {error.strerror}") from error


def draw(lines: Iterable[str], size: int, seed: int) -> list[str]:
    """Draw `size` lines uniformly without replacement, in one pass (reservoir sampling). Size 0 takes all lines."""
    generator = random.Random(seed)
    kept: list[str] = []
    for seen, line in enumerate(lines):
        if size == 0 or seen < size:
            kept.append(line)
        elif (slot := generator.randrange(seen + 1)) < size:
            kept[slot] = line
    return kept


def train_sentencepiece(
    lines: Iterable[str], vocab_size: int, character_coverage: float, model_type: str = "unigram"
) -> bytes:
    """Train a SentencePiece model with the official layout, on lines that are cut into words as in `JiebaTokenizer`.

    The other settings are SentencePiece's defaults: nmt_nfkc, no byte fallback, pieces of at most 16 characters. The
    official vocab.model records the same settings.

    Args:
        lines: Text lines of at most LINE_CHARACTERS characters each.
        vocab_size: Number of pieces, including the special ones.
        character_coverage: Share of the characters that the pieces must cover.
        model_type: unigram or bpe.

    Returns:
        The serialized model.

    Raises:
        InputError: The lines give fewer pieces than `vocab_size`, or their characters need more. The message names a
            size that fits.
    """
    model = io.BytesIO()
    words = (words_for_sentencepiece(line).replace(RESERVED_SYMBOL, "") for line in lines)
    try:
        SentencePieceTrainer.train(
            sentence_iterator=words,
            model_writer=model,
            model_type=model_type,
            normalization_rule_name="nmt_nfkc",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            user_defined_symbols=USER_SYMBOLS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from error
    return model.getvalue()


def _training_error(message: str, vocab_size: int) -> InputError:
    """Translate SentencePiece's error. Only its message says which sizes would fit."""
    if largest := re.search(r"too high .*<= (\d+)", message):
        return InputError(f"vocab_size {vocab_size} is too large for this text; {largest[1]} would fit, or more text")
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(
            f"vocab_size {vocab_size} is too small for this text's characters; {smallest[1]} would fit, "
            "or a lower character_coverage"
        )
    return InputError(f"SentencePiece cannot train on this text: {message}")


def covered_share(tokenizer: JiebaTokenizer, characters: Counter[str]) -> float:
    """Return the share of the counted characters that the tokenizer does not turn into <unk>."""
    covered = sum(count for character, count in characters.items() if UNKNOWN_ID not in tokenizer.encode(character))
    return covered / characters.total()


def _progress(lines: Iterable[str], stage: str) -> Iterable[str]:
    return tqdm(lines, desc=stage, unit=" lines", disable=None)  # None shows it on a terminal only


def train_tokenizer(arguments: TrainTokenizerArguments) -> None:
    """Train a vocabulary, write it, and print what it covers.

    Raises:
        InputError: There is no text, it is not UTF-8, vocab_size does not fit it, or the output cannot be written.
    """
    files = sorted(name for name in glob.glob(arguments.input_glob, recursive=True) if os.path.isfile(name))
    if not files:
        raise InputError(f"no file matches --input_glob '{arguments.input_glob}'; quote it and check the folder")
    output = Path(arguments.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be made a folder: {error.strerror}") from error
    corpus = Corpus(files)
    lines = draw(_progress(corpus, "reading"), arguments.input_sentence_size, arguments.seed)
    if not lines:
        raise InputError(f"the {len(files)} files of --input_glob '{arguments.input_glob}' hold no text")
    print(f"training on {len(lines)} of {corpus.num_lines} lines from {len(files)} files", flush=True)
    model = train_sentencepiece(
        _progress(lines, "segmenting"), arguments.vocab_size, arguments.character_coverage, arguments.model_type
    )
    try:
        with written_whole(output / MODEL_NAME) as partial:
            partial.write_bytes(model)
    except OSError as error:
        raise InputError(f"{output / MODEL_NAME} cannot be written: {error.strerror}") from error
    tokenizer = JiebaTokenizer(output)
    share = covered_share(tokenizer, corpus.characters)
    print(
        f"{output / MODEL_NAME}: {tokenizer.vocab_size} pieces cover {share:.4%} of {corpus.characters.total()} "
        f"characters ({len(corpus.characters)} different)"
    )


def main() -> None:
    """Run the command line."""
    train_tokenizer(parse(TrainTokenizerArguments, "python -m src.train_tokenizer"))


if __name__ == "__main__":
    run_program(main)
