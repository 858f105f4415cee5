import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from src.common.errors import InputError
from src.tokenization_jieba import JiebaTokenizer
from src.train_tokenizer import (
    LINE_CHARACTERS,
    Corpus,
    TrainTokenizerArguments,
    draw,
    train_sentencepiece,
    train_tokenizer,
)
from tests.support.make_tokenizer_data import SENTENCES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def corpus_glob(tmp_path):
    (tmp_path / "one.txt").write_text("".join(SENTENCES * 2), encoding="utf-8")
    (tmp_path / "two.txt").write_text("\n\n".join(SENTENCES), encoding="utf-8")
    return str(tmp_path / "*.txt")


def train(corpus_glob, output, **flags):
    train_tokenizer(
        TrainTokenizerArguments(
            input_glob=corpus_glob, output=str(output), **{"vocab_size": 210, "character_coverage": 1.0} | flags
        )
    )


def test_command_writes_the_official_layout(corpus_glob, tmp_path):
    output = tmp_path / "deep" / "folder"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "src.train_tokenizer",
            "--input_glob",
            corpus_glob,
            "--vocab_size=210",
            "--character_coverage=1",
            f"--output={output}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in output.iterdir()] == ["vocab.model"]
    model = SentencePieceProcessor(model_file=str(output / "vocab.model"))
    assert [model.id_to_piece(token) for token in range(10)] == [
        "<unk>",
        "<s>",
        "</s>",
        "▃",
        "▂",
        "<sep>",
        "<pad>",
        "<mask>",
        "<eod>",
        "<eot>",
    ]
    assert model.vocab_size() == 210
    text = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.txt"))
    assert "training on 36 of 36 lines from 2 files" in done.stdout
    assert f"210 pieces cover 100.0000% of {len(text)} characters ({len(set(text))} different)" in done.stdout


def test_same_text_and_flags_give_the_same_bytes(corpus_glob, tmp_path):
    for name in ("a", "b"):
        train(corpus_glob, tmp_path / name, vocab_size=190, input_sentence_size=20, seed=4)
    assert (tmp_path / "a" / "vocab.model").read_bytes() == (tmp_path / "b" / "vocab.model").read_bytes()


def test_pieces_do_not_cross_words(corpus_glob, tmp_path):
    train(corpus_glob, tmp_path)
    model = SentencePieceProcessor(model_file=str(tmp_path / "vocab.model"))
    pieces = [model.id_to_piece(token) for token in range(10, 210)]
    assert any(len(piece) > 2 for piece in pieces)
    assert not any(symbol in piece[1:] for piece in pieces for symbol in "▁▂▃")


def test_uncovered_characters_are_counted(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("一二三四" * 500 + "\n" + "龘", encoding="utf-8")
    train(str(tmp_path / "x.txt"), tmp_path, vocab_size=15, character_coverage=0.999)
    assert JiebaTokenizer(tmp_path).encode("龘")[-1] == 0
    assert f"cover {2001 / 2002:.4%} of 2002 characters (6 different)" in capsys.readouterr().out


@pytest.mark.parametrize(("vocab_size", "word"), [(100, "small"), (5000, "large")])
def test_unfit_size_names_one_that_fits(vocab_size, word):
    with pytest.raises(InputError, match=f"vocab_size {vocab_size} is too {word}") as refused:
        train_sentencepiece(SENTENCES, vocab_size, 1.0)
    fitting = int(re.search(r"(\d+) would fit", str(refused.value))[1])
    assert train_sentencepiece(SENTENCES, fitting, 1.0)


def test_nothing_is_lost_in_a_line_without_end(tmp_path):
    text = "𠮷龘" * 5000
    (tmp_path / "x.txt").write_text(text + "\n\n \n一", encoding="utf-8")
    corpus = Corpus([str(tmp_path / "x.txt")])
    lines = list(corpus)
    assert "".join(lines).replace("\n", "") == text + "一"
    assert max(map(len, lines)) == LINE_CHARACTERS and corpus.num_lines == len(lines)
    assert corpus.characters == Counter(text + "\n\n \n一")


def test_longest_and_reserved_lines_are_trained_on():
    alphabet = [chr(0x20000 + offset) for offset in range(40)]
    lines = ["".join(alphabet) * (LINE_CHARACTERS // 40), "\u2585 \u4e00" * 10]
    model = SentencePieceProcessor(model_proto=train_sentencepiece(lines, 53, 1.0))
    assert all(model.piece_to_id(character) != 0 for character in [*alphabet, "\u4e00"])


def test_draw_is_uniform_repeatable_and_bounded():
    assert draw("abcdef", 0, seed=0) == draw("abcdef", 6, seed=0) == list("abcdef")
    assert draw("abcdef", 3, seed=5) == draw("abcdef", 3, seed=5)
    counts = Counter(letter for seed in range(6000) for letter in draw("abcdef", 2, seed))
    assert all(abs(counts[letter] - 2000) < 5 * (6000 / 3 * 2 / 3) ** 0.5 for letter in "abcdef")


def test_bad_inputs(tmp_path, corpus_glob):
    (tmp_path / "binary.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "blank.txt2").write_text(" \n\n", encoding="utf-8")
    for pattern, message in (
        (tmp_path / "*.nothing", "no file matches"),
        (tmp_path / "*.bin", "is not UTF-8 text"),
        (tmp_path / "*.txt2", "hold no text"),
        (tmp_path, "no file matches"),
    ):
        with pytest.raises(InputError, match=message):
            train(str(pattern), tmp_path / "output")
    with pytest.raises(InputError, match="cannot be made a folder"):
        train(corpus_glob, tmp_path / "binary.bin")
    for flags, message in (
        ({"vocab_size": 10}, "leaves no room"),
        ({"character_coverage": 0.5}, "must lie in"),
        ({"input_sentence_size": -1}, "must not be negative"),
    ):
        with pytest.raises(InputError, match=message):
            train(corpus_glob, tmp_path, **flags)
    assert not list(tmp_path.rglob("vocab.model*"))


def test_refused_training_leaves_the_old_vocabulary(corpus_glob, tmp_path):
    (tmp_path / "vocab.model").write_text("old")
    with pytest.raises(InputError, match="too large"):
        train(corpus_glob, tmp_path, vocab_size=9000)
    assert (tmp_path / "vocab.model").read_text() == "old"
