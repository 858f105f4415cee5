"""The released models' tokenizer: jieba finds the words, SentencePiece cuts them into pieces.

SentencePiece folds white space, so spaces and newlines travel as the symbols U+2582 and U+2583, which are pieces of
their own. The spaces that SentencePiece sees are the borders between jieba's words; decoding drops them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import jieba
from sentencepiece import SentencePieceProcessor

from src.common.checks import check_ids, check_text, vocabulary_file
from src.common.errors import InputError

SPACE_SYMBOL = "\u2582"
NEWLINE_SYMBOL = "\u2583"
MODEL_NAME = "vocab.model"

_TO_SYMBOLS = str.maketrans(" \n", SPACE_SYMBOL + NEWLINE_SYMBOL)
_FROM_SYMBOLS = str.maketrans({" ": "", SPACE_SYMBOL: " ", NEWLINE_SYMBOL: "\n"})
_REMEDY = (
    "`bash scripts/get_tokenizer.sh DIR` fetches the official vocab.model, `python -m src.train_tokenizer` trains one"
)

jieba.setLogLevel(logging.WARNING)  # its first cut would report the loading of its dictionary


def words_for_sentencepiece(text: str) -> str:
    """The text as SentencePiece sees it, in training and in use: jieba's words, spaces between them, symbols inside."""
    return " ".join(word.translate(_TO_SYMBOLS) for word in jieba.cut(text, cut_all=False))


class JiebaTokenizer:
    """Text to the ids of the released PanGu-α models and back; see `src.tokenization.Tokenizer`.

    `decode(encode(text))` is the text itself, every space and newline kept, as far as its characters survive the
    vocabulary's nmt_nfkc normaliser: full-width and other compatibility forms come back folded (`：` as `:`); tabs,
    carriage returns, control characters and any white space but the space and the newline vanish. Symbols U+2582 and
    U+2583 come back as the space and the newline they stand for, U+2581 vanishes, a character that the vocabulary does
    not know comes back as U+2047 (`⁇`). jieba parts the brackets from `<eot>`, so a text cannot hold special ids.

    `decode` writes special ids as their pieces (`<eot>`), `<s>` and `</s>` as nothing, as the official one does.

    Args:
        path: vocab.model, or the folder that holds it.

    Raises:
        InputError: No such file, not a SentencePiece model, or one without the pieces U+2582 and U+2583.
    """

    def __init__(self, path: str | Path) -> None:
        file = vocabulary_file(path, MODEL_NAME, _REMEDY)
        try:
            self._sentencepiece = SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{file} cannot be read as a SentencePiece model; {_REMEDY}") from error
        for symbol, meaning in ((SPACE_SYMBOL, "space"), (NEWLINE_SYMBOL, "newline")):
            if self._piece_id(symbol) is None:
                raise InputError(f"{file} has no piece U+{ord(symbol):04X}, which stands for the {meaning}; {_REMEDY}")
        self.vocab_size = self._sentencepiece.vocab_size()
        # The official model leaves SentencePiece's own pad and end ids unset: only the pieces' names tell.
        self.eot_id = self._piece_id("<eot>")
        self.eod_id = self._piece_id("<eod>")
        self.pad_id = self._piece_id("<pad>")

    def _piece_id(self, piece: str) -> int | None:
        found = self._sentencepiece.piece_to_id(piece)
        return None if found == self._sentencepiece.unk_id() else found

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises InputError for half a surrogate pair."""
        check_text(text)
        return self._sentencepiece.encode(words_for_sentencepiece(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; raises InputError for an id outside the vocabulary."""
        check_ids(ids, self.vocab_size)
        return self._sentencepiece.decode([int(token) for token in ids]).translate(_FROM_SYMBOLS)
