"""Vocabularies for tests."""

import random
from pathlib import Path

import sentencepiece

from src.tokenization_jieba import JiebaTokenizer

SPECIAL_PIECES = ["\u2583", "\u2582", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]  # with the ids of the release

ODD_TEXTS = [
    "",
    " ",
    "\n",
    "a  b\n\n c ",
    "  明月  ",
    "<eot>",
    "明<sep>月<eod>",
    "😀明月😀😀",
    "问：？（Ａ）\t１\r\n",
    "\u2581\u2582\u2583",
    "<s>",
]


def texts_and_ids(vocabulary, text):
    """Return `texts`, each with its ids and their text, and `ids`, each with their text, by the project's tokenizer.

    The texts are the odd ones, and odd ones between random lines of `text`.
    """
    tokenizer, draw, lines = JiebaTokenizer(vocabulary), random.Random(0), text.split("\n")
    texts = ODD_TEXTS + [draw.choice(lines) + draw.choice(ODD_TEXTS) + draw.choice(lines) for _ in range(300)]
    ids = [[draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 30))] for _ in range(150)]
    return {
        "texts": [(text, tokenizer.encode(text), tokenizer.decode(tokenizer.encode(text))) for text in texts],
        "ids": [(some, tokenizer.decode(some)) for some in ids],
    }


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
