"""Vocabularies for tests."""

from pathlib import Path

import sentencepiece

SPECIAL_PIECES = ["\u2583", "\u2582", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]  # with the ids of the release


def train_vocab(folder, text, vocab_size=160, **settings):
    """Train a vocabulary of at most `vocab_size` pieces on a text, and return the path of its vocab.model."""
    corpus = Path(folder) / "corpus.txt"
    corpus.write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(corpus.with_name("vocab")),
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=SPECIAL_PIECES,
        minloglevel=2,
        **settings,
    )
    return corpus.with_name("vocab.model")
