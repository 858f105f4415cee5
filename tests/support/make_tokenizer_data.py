"""Make small vocabularies for tests. This takes a moment, so the repository holds none.

    python tests/support/make_tokenizer_data.py DIR

This writes DIR/vocab.model (jieba) and DIR/vocab.json with DIR/merges.txt (gpt).
"""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.train_tokenizer import train_sentencepiece

SENTENCES = [
    "清晨的雾从河面升起，打鱼的人已经划着小船出发了。\n",
    "老师问：今天谁愿意先读这一段课文？小明举起了手。\n",
    "城里的春天来得早，街边的玉兰花开了又谢。\n",
    "他在图书馆里读了一整天的书，忘记了吃饭。\n",
    "这台机器每小时可以处理 300 份文件, 比去年快了 25%。\n",
    "外面下着大雨，我们只好坐在屋里喝茶、聊天、看书。\n",
    "问：从北京到上海坐高铁要多久？答：大约四个半小时。\n",
    "奶奶说，中秋节的月亮最圆，一家人要坐在一起吃月饼。\n",
    "The quick model reads a page, then it answers the question.\n",
    "We'll test   many spaces, don't we? I've 3 cats and they're asleep.\n",
    "山路很陡，可是山顶的风景让大家觉得一切都值得。\n",
    "科学家用望远镜观察星星，记录下每一个夜晚的数据。\n",
]
CHARACTERS = sorted(set("".join(SENTENCES)))


def make_jieba(folder: Path, vocab_size: int = 210) -> Path:
    """Train vocab.model on SENTENCES and return its path. It covers all of their characters."""
    file = folder / "vocab.model"
    file.write_bytes(train_sentencepiece(SENTENCES, vocab_size, character_coverage=1.0))
    return file


def byte_characters() -> dict[int, str]:
    """Return GPT-2's printable character for each byte: its own character if that prints, else one from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = {byte: chr(byte) for byte in printing}
    for byte in range(256):
        stand_ins.setdefault(byte, chr(256 + len(stand_ins) - len(printing)))
    return stand_ins


def make_gpt(folder: Path, num_merges: int = 150) -> Path:
    """Write vocab.json and merges.txt, and return the folder. Each merge joins the pair that is most frequent then."""
    stand_ins = byte_characters()
    words = [
        [stand_ins[byte] for byte in word.encode()]
        for sentence in SENTENCES
        for word in sentence.replace(" ", "\0 ").split("\0")
    ]
    merges = []
    for _ in range(num_merges):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(pair)
        words = [merge(word, pair) for word in words]
    pieces = [*stand_ins.values(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of the pair in a word, from the left."""
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    make_jieba(target)
    make_gpt(target)
