"""Guided output: xgrammar has to know what each piece adds to a text."""

from collections.abc import Sequence

import xgrammar

from vllm_pangu_alpha.tokenization_pangu_alpha import PanguAlphaTokenizer

_WORD_SYMBOL = "\u2581"  # stands for the spaces between jieba's words, which no text has


def texts_of_pieces(tokenizer: PanguAlphaTokenizer) -> list[str | bytes]:
    """Return what each id adds to a text; nothing for control pieces, and bytes for pieces of byte fallback."""
    pieces = tokenizer.sp_model
    special = set(tokenizer.all_special_ids)

    def text(token: int) -> str | bytes:
        if token in special or pieces.is_control(token) or pieces.is_unknown(token):
            return ""
        piece = pieces.id_to_piece(token)
        if pieces.is_byte(token):  # `<0xE6>`
            return bytes([int(piece[3:5], 16)])
        return tokenizer.convert_tokens_to_string([piece.replace(_WORD_SYMBOL, "")])

    return [text(token) for token in range(tokenizer.vocab_size)]


def teach_xgrammar() -> None:
    """Give xgrammar these texts. By itself it takes U+2581 for a space, and U+2582 for a character of the text."""
    guess = xgrammar.TokenizerInfo.from_huggingface
    if hasattr(guess, "for_others"):  # `register` was here before
        return

    def from_huggingface(
        tokenizer: object, *, vocab_size: int | None = None, stop_token_ids: int | Sequence[int] | None = None
    ) -> xgrammar.TokenizerInfo:
        if not isinstance(tokenizer, PanguAlphaTokenizer):
            return guess(tokenizer, vocab_size=vocab_size, stop_token_ids=stop_token_ids)
        return xgrammar.TokenizerInfo(
            texts_of_pieces(tokenizer),
            xgrammar.VocabType.RAW,
            vocab_size=vocab_size,
            stop_token_ids=[tokenizer.eos_token_id] if stop_token_ids is None else stop_token_ids,
        )

    from_huggingface.for_others = guess
    xgrammar.TokenizerInfo.from_huggingface = staticmethod(from_huggingface)
