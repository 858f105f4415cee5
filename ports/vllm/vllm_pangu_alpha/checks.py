"""Checks and settings of a server before it starts. vLLM calls them by the name of the architecture."""

import hashlib
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers.utils import cached_file
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from vllm_pangu_alpha.one_line import tell_in_one_line

_CPU_BLOCK = 32  # tokens
_REMEDY = "copy the vocab.model that the model was trained with beside its config.json"


class PanguAlphaChecks(VerifyAndUpdateConfig):
    """Compare vocabulary and model before the weights are read, and choose a size for the blocks of the KV cache."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Check the vocabulary, and note its size as `num_pieces`, for the head to leave out ids beyond it.

        Raises:
            ValueError: The vocabulary is missing, damaged, too large, or not the one of the model.
        """
        tell_in_one_line()
        config = model_config.hf_config
        if model_config.skip_tokenizer_init:
            config.num_pieces = config.vocab_size
            return
        try:
            file = cached_file(model_config.tokenizer, "vocab.model", revision=model_config.tokenizer_revision)
        except OSError as error:
            raise ValueError(f"{model_config.tokenizer} has no vocab.model: {_REMEDY}") from error
        config.num_pieces = checked_pieces(Path(file), config.vocab_size, getattr(config, "vocabulary_md5", ""))

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Take small blocks on a CPU: only whole blocks are found again, and vLLM would take 128 tokens."""
        cache = vllm_config.cache_config
        if current_platform.is_cpu() and not cache.user_specified_block_size:
            cache.block_size, cache.user_specified_block_size = _CPU_BLOCK, True


def checked_pieces(file: Path, vocab_size: int, md5: str) -> int:
    """Return the number of pieces of a vocabulary.

    Args:
        file: A vocab.model.
        vocab_size: Number of ids of the model.
        md5: MD5 of the vocabulary that the model was trained with; empty if that is unknown.

    Raises:
        ValueError: The file is damaged, has more pieces than the model has ids, or another MD5.
    """
    found = hashlib.md5(file.read_bytes()).hexdigest()
    if md5 and found != md5:
        raise ValueError(f"{file} is not the model's vocabulary: its md5 is {found}, the model's is {md5}; {_REMEDY}")
    try:
        pieces = SentencePieceProcessor(model_file=str(file)).get_piece_size()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a SentencePiece model: {_REMEDY}") from error
    if pieces > vocab_size:
        raise ValueError(f"{file} has {pieces} pieces, but the model only {vocab_size} ids: {_REMEDY}")
    return pieces
