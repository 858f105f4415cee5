"""Text to ids and back: what the rest of the project asks of a tokenizer, and how to get one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from src.common.errors import InputError, nearest
from src.tokenization_gpt import GPTTokenizer
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
