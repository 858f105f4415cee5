import copy
import pickle
import random
import subprocess
import sys
import unicodedata

import jieba
import numpy as np
import pytest
import sentencepiece

from src.common.errors import InputError
from src.tokenization_jieba import JiebaTokenizer
from tests.support.make_tokenizer_data import CHARACTERS, SENTENCES, make_jieba


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return make_jieba(tmp_path_factory.mktemp("jieba"))


@pytest.fixture(scope="module")
def tokenizer(model_file):
    return JiebaTokenizer(model_file)


def specified_ids(model_file, text):
    """Follow the published recipe step by step."""
    words = [word.replace(" ", "▂").replace("\n", "▃") for word in jieba.cut(text, cut_all=False)]
    return sentencepiece.SentencePieceProcessor(model_file=str(model_file)).encode(" ".join(words))


def random_texts(seed, count):
    generator = random.Random(seed)
    for _ in range(count):
        parts = generator.choices([*CHARACTERS, " ", "  ", "\n", "\n\n", *SENTENCES], k=generator.randrange(20))
        yield "".join(parts)


def test_ids_follow_the_published_recipe(tokenizer, model_file):
    for text in [*SENTENCES, "", " ", *random_texts(1, 50)]:
        assert tokenizer.encode(text) == specified_ids(model_file, text)


def test_words_are_cut_by_jieba_before_the_pieces(tokenizer):
    ids = tokenizer.encode("图书馆里 望远镜\n")
    pieces = [tokenizer._sentencepiece.id_to_piece(token) for token in ids]
    assert "".join(pieces) == "▁图书馆▁里▁▂▁望远镜▁▃"
    assert ids.count(3) == 1 and ids.count(4) == 1


def test_round_trip_keeps_every_space_and_newline(tokenizer):
    for text in random_texts(2, 300):
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("  \n\n 月亮 \n", "  \n\n 月亮 \n"),
        ("问：答？", "问:答?"),
        ("月\t亮\r\n星\u3000星", "月亮\n星星"),
        ("月▂亮▃星▁星", "月 亮\n星星"),
        ("月龘亮", "月⁇亮"),
        ("", ""),
    ],
)
def test_what_comes_back(tokenizer, text, decoded):
    assert tokenizer.decode(tokenizer.encode(text)) == decoded


def test_special_ids_are_found_by_piece_and_cannot_be_written_in_text(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eod_id, tokenizer.eot_id) == (6, 8, 9)
    assert not {5, 6, 7, 8, 9} & set(tokenizer.encode("<sep><pad><mask> <eod>\n<eot>"))


def test_special_ids_decode_to_their_pieces(tokenizer):
    assert tokenizer.decode(range(10)) == "⁇\n <sep><pad><mask><eod><eot>"


def test_array_ids(tokenizer):
    ids = np.array(tokenizer.encode(SENTENCES[0]), dtype=np.int32)
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist())


@pytest.mark.parametrize("bad", [-1, 210, 2**40])
def test_id_outside_the_vocabulary(tokenizer, bad):
    with pytest.raises(InputError, match=f"id {bad} at position 1 .* 210 ids"):
        tokenizer.decode([5, bad])


def test_half_a_surrogate_pair(tokenizer):
    with pytest.raises(InputError, match=r"U\+D83D, at character 2"):
        tokenizer.encode("月亮\ud83d")


def test_copies_and_the_folder_work_alike(tokenizer, model_file):
    ids = tokenizer.encode(SENTENCES[4])
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer), JiebaTokenizer(model_file.parent)):
        assert twin.encode(SENTENCES[4]) == ids
        assert (twin.vocab_size, twin.eot_id) == (210, 9)


def test_nothing_is_printed(model_file):
    program = f"from src.tokenization_jieba import *; JiebaTokenizer({str(model_file)!r}).encode('图书馆')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_missing_file_names_the_remedy(tmp_path):
    for path in (tmp_path, tmp_path / "no.model"):
        with pytest.raises(InputError, match=r"no vocabulary .*model; .*get_tokenizer.sh"):
            JiebaTokenizer(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(1000), random.Random(0).randbytes(1_000_000)])
def test_not_a_model(tmp_path, content):
    (tmp_path / "vocab.model").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a SentencePiece model"):
        JiebaTokenizer(tmp_path)


def test_model_cut_short(tmp_path, model_file):
    (tmp_path / "vocab.model").write_bytes(model_file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read as a SentencePiece model"):
        JiebaTokenizer(tmp_path)


def test_a_piece_that_is_no_utf8(tmp_path, model_file):
    content = model_file.read_bytes()
    (tmp_path / "vocab.model").write_bytes(content.replace(b"<eod>", b"<e\xffd>"))
    with pytest.raises(InputError, match="cannot be read as a SentencePiece model"):
        JiebaTokenizer(tmp_path)


def test_model_without_the_space_symbol(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b"] * 3), model_prefix=str(tmp_path / "vocab"), vocab_size=6, minloglevel=2
    )
    with pytest.raises(InputError, match=r"no piece U\+2582, which stands for the space"):
        JiebaTokenizer(tmp_path)


def test_model_without_special_pieces(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b"] * 3),
        model_prefix=str(tmp_path / "vocab"),
        vocab_size=8,
        user_defined_symbols=["▃", "▂"],
        minloglevel=2,
    )
    tokenizer = JiebaTokenizer(tmp_path)
    assert tokenizer.pad_id is tokenizer.eod_id is tokenizer.eot_id is None
    assert tokenizer.decode(tokenizer.encode("a  b\na")) == "a  b\na"


def test_fold_writes_a_text_as_decode_does(tokenizer):
    for text in random_texts(3, 100):
        assert tokenizer.fold(text) == tokenizer.decode(tokenizer.encode(text))
    assert tokenizer.fold("\n问：什么？！") == "\n问:什么?!"
    assert tokenizer.fold("\t") == tokenizer.fold("\u2581") == ""
    assert tokenizer.decode(tokenizer.encode("𪚥？")) == "⁇?" and tokenizer.fold("𪚥？") == "𪚥?"
