"""Tokenizers turn text into ids and back: the Tokenizer protocol, GPT-2's tokenizer, and `load_tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from src.common.checks import check_ids, check_text, vocabulary_file
from src.common.errors import InputError, nearest
from src.tokenization_jieba import JiebaTokenizer


class Tokenizer(Protocol):
    """Interface of both tokenizers. They can be pickled.

    Args:
        vocab_size: Number of ids. They are 0 .. vocab_size - 1.
        longest_piece: Most characters of a text that one id stands for, if the vocabulary knows them.
        eot_id: Id of the end of a text, where generation stops. None if the vocabulary has no such piece.
        eod_id: Id of the end of a document in training data. None if the vocabulary has no such piece.
        pad_id: Id of padding. None if the vocabulary has no such piece.
    """

    vocab_size: int
    longest_piece: int
    eot_id: int | None
    eod_id: int | None
    pad_id: int | None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length. No special id is added, and text cannot spell one.

        Raises:
            InputError: The text holds half a surrogate pair.
        """
        ...

    def lost(self, text: str) -> dict[str, int]:
        """Count the characters of a text that no ids stand for, by character. White space does not count."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. A special id becomes the name of its piece.

        This allows streaming: the text of the first ids is a prefix of the text of all ids. One exception: a last
        character with missing bytes becomes U+FFFD.

        Raises:
            InputError: An id is outside the vocabulary.
        """
        ...

    def fold(self, text: str) -> str:
        """Return a text as `decode` can write it: with the characters that the normaliser puts in place of others.

        Unknown characters stay. The result is empty if no ids can give any of the text.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that an id stands for. They may be a part of a character only.

        Raises:
            InputError: The id is outside the vocabulary.
        """
        ...


END_OF_TEXT = "<|endoftext|>"
# GPT-2 writes each byte of a piece as one character: printable bytes as themselves, others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + place): byte for place, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTABLE)))
}
_REMEDY = "give a folder with the vocab.json and merges.txt of a GPT-2 vocabulary"


class GPTTokenizer:
    """GPT-2's byte-level BPE, as in its published encoder. It implements `Tokenizer`.

    Any text survives a round trip, because every byte is a piece. `<|endoftext|>` is the end of a text, the end of a
    document and padding. Text that contains these characters gives plain pieces, as in the published encoder. Ids that
    hold only some bytes of a character decode to U+FFFD.

    Args:
        path: Folder of vocab.json and merges.txt, or the file vocab.json with merges.txt beside it.

    Raises:
        InputError: A file is missing, or the two files are not a byte-level BPE vocabulary.
    """

    def __init__(self, path: str | Path) -> None:
        vocab_file = vocabulary_file(path, "vocab.json", _REMEDY)
        merges_file = vocabulary_file(vocab_file.parent, "merges.txt", _REMEDY)
        try:
            model = models.BPE.from_file(str(vocab_file), str(merges_file))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{vocab_file} and {merges_file.name} are no BPE vocabulary; {_REMEDY}") from error
        self._tokenizer = FastTokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        vocab = self._tokenizer.get_vocab()
        if not vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
            raise InputError(f"{vocab_file} lacks some of the 256 byte pieces of a GPT-2 vocabulary; {_REMEDY}")
        if set(vocab.values()) != set(range(len(vocab))):
            raise InputError(f"{vocab_file} does not number its {len(vocab)} pieces 0 .. {len(vocab) - 1}; {_REMEDY}")
        self.vocab_size, self.longest_piece = len(vocab), max(map(len, vocab))
        self.eot_id = self.eod_id = self.pad_id = vocab.get(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises InputError for half a surrogate pair."""
        check_text(text)
        return self._tokenizer.encode(text).ids

    def lost(self, text: str) -> dict[str, int]:
        """Return {}: every byte is a piece."""
        return {}

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Raises InputError for an id outside the vocabulary."""
        check_ids(ids, self.vocab_size)
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def fold(self, text: str) -> str:
        """Return the text itself: bytes can give every text."""
        return text

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id. Raises InputError for an id outside the vocabulary."""
        check_ids([token], self.vocab_size)
        return bytes(_BYTES[character] for character in self._tokenizer.id_to_token(int(token)) or "")


_KINDS = {"jieba": JiebaTokenizer, "gpt": GPTTokenizer}


def load_tokenizer(kind: str, path: str | Path) -> Tokenizer:
    """Load a tokenizer from the files of its vocabulary.

    Args:
        kind: Kind of tokenizer: jieba (SentencePiece over jieba words, as the released models have it) or gpt (GPT-2's
            byte-level BPE).
        path: Vocabulary, as a file or a folder: vocab.model for jieba, vocab.json with merges.txt beside it for gpt.

    Raises:
        InputError: The kind is unknown, or the vocabulary is missing or does not fit.
    """
    if kind not in _KINDS:
        raise InputError(f"tokenizer '{kind}' is none of {', '.join(_KINDS)}{nearest(kind, _KINDS)}")
    if not str(path):
        raise InputError(f"the {kind} tokenizer has no path; give the folder or file of its vocabulary")
    return _KINDS[kind](path)
