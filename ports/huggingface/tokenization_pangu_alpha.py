"""PanGu-α's tokenizer for Transformers. This file stands alone: it lies beside vocab.model, for trust_remote_code.

jieba splits text into words, SentencePiece splits words into pieces. SentencePiece folds white space, so spaces and
newlines are replaced by the symbols U+2582 and U+2583, which are pieces of their own.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from typing import Any

import jieba
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

_TO_SYMBOLS = str.maketrans(" \n", "\u2582\u2583")
_FROM_SYMBOLS = str.maketrans({" ": "", "\u2582": " ", "\u2583": "\n"})
_SPECIAL = {"eos_token": "<eot>", "pad_token": "<pad>", "sep_token": "<sep>", "mask_token": "<mask>"}

jieba.setLogLevel(logging.WARNING)  # else it reports the loading of its dictionary


class PanguAlphaTokenizer(PreTrainedTokenizer):
    """Tokenizer of the released PanGu-α models.

    Ids and decoded texts are those of PanGu-α on MindSpore. No id is added to a text. Text cannot spell a special id:
    `<eot>` in it is only characters, unless the call says split_special_tokens=False. A character that the vocabulary
    does not know becomes U+2047. Batches are padded on the left.

    Args:
        vocab_file: The file vocab.model, which `from_pretrained` looks for in its folder.
        kwargs: Settings of every tokenizer.

    Raises:
        ValueError: There is no file, or it is no SentencePiece model, or lacks the pieces U+2582 and U+2583.
    """

    vocab_files_names = {"vocab_file": "vocab.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str | None = None, **kwargs: Any) -> None:
        if vocab_file is None:
            raise ValueError("there is no vocab.model: put the model's vocabulary beside its tokenizer_config.json")
        self.vocab_file = vocab_file
        try:
            self.sp_model = SentencePieceProcessor(model_file=vocab_file)
            self.sp_model.id_to_piece(list(range(self.vocab_size)))  # fails for pieces that are no UTF-8
        except (RuntimeError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{vocab_file} cannot be read as a SentencePiece model") from error
        for symbol in "\u2582\u2583":
            if not self._has(symbol):
                raise ValueError(f"{vocab_file} has no piece U+{ord(symbol):04X}: it is not a vocabulary of PanGu-α")
        for name, piece in _SPECIAL.items():
            if self._has(piece):
                kwargs.setdefault(name, piece)
        if self._has("<eod>"):
            kwargs.setdefault("extra_special_tokens", {"eod_token": "<eod>"})
        kwargs.setdefault("padding_side", "left")
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(**kwargs)

    def _has(self, piece: str) -> bool:
        return self.sp_model.piece_to_id(piece) != self.sp_model.unk_id()

    @property
    def vocab_size(self) -> int:
        """Number of pieces in vocab.model."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all pieces."""
        return {self.sp_model.id_to_piece(number): number for number in range(self.vocab_size)} | (
            self.added_tokens_encoder
        )

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        words = " ".join(word.translate(_TO_SYMBOLS) for word in jieba.cut(text, cut_all=False))
        return self.sp_model.encode(words, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"id {index} is outside the vocabulary of {self.vocab_size} pieces")
        return self.sp_model.id_to_piece(index)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text of pieces. A special piece becomes its name."""
        return self.sp_model.decode_pieces(list(tokens)).translate(_FROM_SYMBOLS)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy vocab.model to a folder, and return its path there."""
        name = f"{filename_prefix}-vocab.model" if filename_prefix else "vocab.model"
        copy = os.path.join(save_directory, name)
        if os.path.abspath(copy) != os.path.abspath(self.vocab_file):
            shutil.copyfile(self.vocab_file, copy)
        return (copy,)
