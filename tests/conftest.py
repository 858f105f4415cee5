"""Fixtures that several test files share."""

import random

import pytest
import sentencepiece

SPECIAL_PIECES = ["\u2583", "\u2582", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
PHRASES = ["春风又绿江南岸", "明月何时照我还", "今天是一个好天气", "小明背起书包去上学", "突然刮起了狂风暴雨",
           "床前明月光", "疑是地上霜", "举头望明月", "低头思故乡", "the quick brown fox", "jumps over 13 lazy dogs"]


@pytest.fixture(scope="session")
def chinese_text():
    """A function from a seed and a number of lines to text: phrases, some lines blank."""

    def make(seed: int, num_lines: int) -> str:
        draw = random.Random(seed)
        return "".join("\n" if draw.random() < 0.2 else "，".join(draw.choices(PHRASES, k=draw.randint(1, 6))) + "。\n"
                       for _ in range(num_lines))

    return make


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory, chinese_text):
    """Path of a vocab.model of 160 pieces with the special pieces where the released one has them."""
    folder = tmp_path_factory.mktemp("vocab")
    corpus = folder / "corpus.txt"
    corpus.write_text(chinese_text(0, 500), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "vocab"), vocab_size=160, hard_vocab_limit=False,
        character_coverage=1.0, user_defined_symbols=SPECIAL_PIECES, minloglevel=2)
    return folder / "vocab.model"
