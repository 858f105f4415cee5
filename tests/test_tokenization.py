import pytest

from src.common.errors import InputError
from src.tokenization import load_tokenizer
from tests.support.make_tokenizer_data import SENTENCES, make_gpt, make_jieba


@pytest.mark.parametrize(("kind", "make"), [("jieba", make_jieba), ("gpt", make_gpt)])
def test_both_kinds_share_one_interface(tmp_path, kind, make):
    make(tmp_path)
    tokenizer = load_tokenizer(kind, str(tmp_path))
    ids = tokenizer.encode(SENTENCES[3])
    assert all(type(token) is int and 0 <= token < tokenizer.vocab_size for token in ids)
    assert len(tokenizer.decode(ids)) == len(SENTENCES[3])
    longest = max(len(tokenizer.decode([token])) for token in range(tokenizer.vocab_size))
    assert longest <= tokenizer.longest_piece <= longest + 1  # a word's first piece has a sign before it
    for special in (tokenizer.eot_id, tokenizer.eod_id, tokenizer.pad_id):
        assert tokenizer.decode([special]).startswith("<")


def test_unknown_kind():
    with pytest.raises(InputError, match="'jeiba' is none of jieba, gpt; did you mean 'jieba'"):
        load_tokenizer("jeiba", "x")


def test_no_path():
    with pytest.raises(InputError, match="gpt tokenizer has no path"):
        load_tokenizer("gpt", "")
