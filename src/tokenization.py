"""Text to ids and back: the Tokenizer protocol, GPT-2's tokenizer, and `load_tokenizer`."""

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
    """What both tokenizers offer; picklable, so that worker processes can share one.

    Args:
        vocab_size: Ids are 0 .. vocab_size - 1.
        eot_id: End of text, where generation stops; None when the vocabulary has no such piece.
        eod_id: End of a document in the corpus; None likewise.
        pad_id: Padding; None likewise.
    """

    vocab_size: int
    eot_id: int | None
    eod_id: int | None
    pad_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length; no special id is added, and none can be written in the text.

        Raises:
            InputError: The text holds half a surrogate pair.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special ones shown as their pieces.

        The text of the first ids begins that of all, but that a character of which bytes are still missing stands as
        U+FFFD: what makes streaming possible.

        Raises:
            InputError: An id is outside the vocabulary.
        """
        ...


END_OF_TEXT = "<|endoftext|>"
_REMEDY = "give a folder with the vocab.json and merges.txt of a GPT-2 vocabulary"


class GPTTokenizer:
    """Text to ids by GPT-2's published encoder and back; see `Tokenizer`.

    Any text comes back whole, since every byte is a piece. `<|endoftext|>` ends a text, ends a document and pads;
    written in a text it is plain characters, as in the published encoder. Ids that break a character off decode to
    U+FFFD.

    Args:
        path: The folder of vocab.json and merges.txt, or vocab.json with merges.txt beside it.

    Raises:
        InputError: A file is missing, or the two are no byte-level BPE.
    """

    def __init__(self, path: str | Path) -> None:
        vocab_file = vocabulary_file(path, "vocab.json", _REMEDY)
        merges_file = vocabulary_file(vocab_file.parent, "merges.txt", _REMEDY)
        try:
            model = models.BPE.from_file(str(vocab_file), str(merges_file))
        except Exception as error:  # the library has no narrower class
            raise InputError(f"{vocab_file} and {merges_file.name} are no BPE vocabulary; {_REMEDY}") from error
        self._tokenizer = FastTokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        vocab = self._tokenizer.get_vocab()
        if not vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
            raise InputError(f"{vocab_file} lacks some of the 256 byte pieces of a GPT-2 vocabulary; {_REMEDY}")
        if set(vocab.values()) != set(range(len(vocab))):
            raise InputError(f"{vocab_file} does not number its {len(vocab)} pieces 0 .. {len(vocab) - 1}; {_REMEDY}")
        self.vocab_size = len(vocab)
        self.eot_id = self.eod_id = self.pad_id = vocab.get(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises InputError for half a surrogate pair."""
        check_text(text)
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; raises InputError for an id outside the vocabulary."""
        check_ids(ids, self.vocab_size)
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)


_KINDS = {"jieba": JiebaTokenizer, "gpt": GPTTokenizer}


def load_tokenizer(kind: str, path: str | Path) -> Tokenizer:
    """A tokenizer from a vocabulary on this machine.

    Args:
        kind: jieba (the released models' SentencePiece over jieba words) or gpt (GPT-2's byte-level BPE).
        path: Folder or file of the vocabulary: vocab.model for jieba, vocab.json beside merges.txt for gpt.

    Raises:
        InputError: Unknown kind, or a vocabulary that is missing or unfit.
    """
    if kind not in _KINDS:
        raise InputError(f"tokenizer '{kind}' is none of {', '.join(_KINDS)}{nearest(kind, _KINDS)}")
    if not str(path):
        raise InputError(f"the {kind} tokenizer has no path; give the folder or file of its vocabulary")
    return _KINDS[kind](path)
