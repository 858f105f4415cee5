"""The tokenizer of the released models: jieba splits text into words, SentencePiece splits words into pieces.

SentencePiece folds white space. So spaces and newlines are replaced by the symbols U+2582 and U+2583, which are pieces
of their own. Spaces are then put between jieba's words, and removed again in decoding.
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
_WORD_SYMBOL = "\u2581"  # SentencePiece's own sign for the spaces between words
_REMEDY = (
    "`bash scripts/get_tokenizer.sh DIR` fetches the official vocab.model, `python -m src.train_tokenizer` trains one"
)

jieba.setLogLevel(logging.WARNING)  # else it reports the loading of its dictionary


def words_for_sentencepiece(text: str) -> str:
    """Return the input of SentencePiece: jieba's words with spaces between them and symbols for white space in them."""
    return " ".join(word.translate(_TO_SYMBOLS) for word in jieba.cut(text, cut_all=False))


class JiebaTokenizer:
    """Tokenizer of the released PanGu-α models. It implements `src.tokenization.Tokenizer`.

    `decode(encode(text))` gives the text back with every space and newline, except for what the vocabulary's normaliser
    (nmt_nfkc) changes:
      * Full-width and other compatibility forms are folded: `：` becomes `:`.
      * Tabs, carriage returns, control characters and white space other than the space and the newline are lost.
      * The symbols U+2582 and U+2583 become a space and a newline. U+2581 is lost.
      * A character that the vocabulary does not know becomes U+2047 (`⁇`).
    Text cannot spell a special id, because jieba splits the brackets from `<eot>`.

    `decode` turns special ids into the names of their pieces (`<eot>`), and `<s>` and `</s>` into nothing, as the
    official tokenizer does.

    Args:
        path: The file vocab.model, or its folder.

    Raises:
        InputError: The file is missing, is not a SentencePiece model, or lacks the pieces U+2582 and U+2583.
    """

    def __init__(self, path: str | Path) -> None:
        file = vocabulary_file(path, MODEL_NAME, _REMEDY)
        try:
            self._sentencepiece = SentencePieceProcessor(model_file=str(file))
            self.vocab_size = self._sentencepiece.vocab_size()
            self.longest_piece = max(map(len, self._sentencepiece.id_to_piece(list(range(self.vocab_size)))))
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as a SentencePiece model; {_REMEDY}") from error
        for symbol, meaning in ((SPACE_SYMBOL, "space"), (NEWLINE_SYMBOL, "newline")):
            if self._piece_id(symbol) is None:
                raise InputError(f"{file} has no piece U+{ord(symbol):04X}, which stands for the {meaning}; {_REMEDY}")
        self._is_lost: dict[str, bool] = {}  # characters that `lost` has met
        # The official model does not set SentencePiece's own pad and end ids, so the pieces are found by name.
        self.eot_id = self._piece_id("<eot>")
        self.eod_id = self._piece_id("<eod>")
        self.pad_id = self._piece_id("<pad>")

    def _piece_id(self, piece: str) -> int | None:
        found = self._sentencepiece.piece_to_id(piece)
        return None if found == self._sentencepiece.unk_id() else found

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. Raises InputError for half a surrogate pair."""
        check_text(text)
        return self._sentencepiece.encode(words_for_sentencepiece(text))

    def lost(self, text: str) -> dict[str, int]:
        """Count the characters of a text that become the unknown piece or nothing. White space does not count."""
        new = set(text) - self._is_lost.keys()
        self._is_lost.update((character, self._loses(character)) for character in new)
        return {character: text.count(character) for character in set(text) if self._is_lost[character]}

    def _loses(self, character: str) -> bool:
        if character.isspace():
            return False
        ids = self._sentencepiece.encode(character.translate(_TO_SYMBOLS))
        return self._sentencepiece.unk_id() in ids or not self._sentencepiece.decode(ids).strip()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Raises InputError for an id outside the vocabulary."""
        check_ids(ids, self.vocab_size)
        return self._sentencepiece.decode([int(token) for token in ids]).translate(_FROM_SYMBOLS)

    def fold(self, text: str) -> str:
        """Return a text as `decode(encode(text))`, but with its unknown characters: `？` becomes `?`."""
        folded = self._sentencepiece.normalize(words_for_sentencepiece(text))
        return folded.replace(_WORD_SYMBOL, "").translate(_FROM_SYMBOLS)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of an id. Raises InputError for an id outside the vocabulary."""
        check_ids([token], self.vocab_size)
        if self._sentencepiece.is_byte(int(token)):  # `<0xE6>`, in vocabularies with byte fallback
            return bytes([int(self._sentencepiece.id_to_piece(int(token))[3:5], 16)])
        return self.decode([token]).encode()
