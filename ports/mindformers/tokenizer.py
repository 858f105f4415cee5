"""PanGu-α's tokenizer and processor for MindFormers, over this project's tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindformers.models.base_processor import BaseProcessor
from mindformers.models.tokenization_utils import PreTrainedTokenizer
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from sentencepiece import SentencePieceProcessor

from ports.mindformers.model import known_settings
from ports.mindformers.pretrained import DOWNLOADS, NAMES, find
from src.common.checks import check_ids
from src.common.errors import InputError
from src.tokenization_jieba import MODEL_NAME, JiebaTokenizer

# <unk> is not among them: a decoded answer must show that a character is missing.
_SPECIAL = {"eos_token": "<eot>", "pad_token": "<pad>", "sep_token": "<sep>", "mask_token": "<mask>"}
DEFAULT_VOCABULARY = str(DOWNLOADS / MODEL_NAME)


@MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
class PanguAlphaTokenizer(PreTrainedTokenizer):
    """Tokenizer of the released models, with the ids and texts of src.tokenization_jieba.

    No id is added to a text. Text cannot spell a special id: `<eot>` in it is only characters. Batches are padded on
    the right, which `generate` knows.

    Args:
        vocab_file: The file vocab.model, its folder, or a name of ports.mindformers.pretrained.NAMES.
        kwargs: Settings of every tokenizer of MindFormers.

    Raises:
        InputError: There is no such file, or it is no vocabulary of PanGu-α.
    """

    vocab_files_names = {"vocab_file": MODEL_NAME}
    model_input_names = ["input_ids", "attention_mask"]
    FILE_LIST = ["tokenizer_config.json"]
    _support_list = list(NAMES)

    def __init__(self, vocab_file: str = DEFAULT_VOCABULARY, **kwargs: Any) -> None:
        found = find(vocab_file) if vocab_file in NAMES else None
        path = found.vocabulary() if found else Path(vocab_file)
        self.ours = JiebaTokenizer(path)
        self.vocab_file = str(path / MODEL_NAME if path.is_dir() else path)
        self._pieces = SentencePieceProcessor(model_file=self.vocab_file)
        for name, piece in _SPECIAL.items():
            kwargs.setdefault(name, piece)
        kwargs.setdefault("split_special_tokens", True)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *args: Any, **kwargs: Any) -> PanguAlphaTokenizer:
        """Load the vocabulary of a name or a folder, as `ports.mindformers.pretrained.find` knows them.

        A folder with vocab.model alone will do.

        Raises:
            InputError: There is no vocabulary.
        """
        name_or_path = kwargs.pop("pretrained_model_name_or_path", name_or_path)
        if (Path(name_or_path) / MODEL_NAME).is_file():
            kwargs.setdefault("vocab_file", str(Path(name_or_path) / MODEL_NAME))
        elif found := find(name_or_path):
            kwargs.setdefault("vocab_file", str(found.vocabulary()))
        else:
            raise InputError(f"no vocabulary at '{name_or_path}': give a folder with {MODEL_NAME}")
        return cls(*args, **known_settings({k: v for k, v in kwargs.items() if k != "use_fast"}))

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self.ours.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all pieces."""
        return {self._pieces.id_to_piece(number): number for number in range(self.vocab_size)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._pieces.id_to_piece(token) for token in self.ours.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        check_ids([int(index)], self.vocab_size)
        return self._pieces.id_to_piece(int(index))

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text of pieces. A special piece becomes its name."""
        return self.ours.decode([self._pieces.piece_to_id(token) for token in tokens])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy vocab.model to a folder, and return its path there."""
        copy = Path(save_directory) / (f"{filename_prefix}-{MODEL_NAME}" if filename_prefix else MODEL_NAME)
        if copy.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, copy)
        return (str(copy),)


@MindFormerRegister.register(MindFormerModuleType.PROCESSOR)
class PanguAlphaProcessor(BaseProcessor):
    """Processor of texts: MindFormers' own, with this tokenizer."""

    _support_list = list(NAMES)
