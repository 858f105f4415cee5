"""The tokenizer for MindFormers: the project's ids and texts, and MindFormers' own way of padding."""

import numpy as np
import pytest
from mindformers import AutoProcessor, AutoTokenizer

from src.common.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("pangualpha_tiny")


def test_ids_and_texts_are_the_project_s(tokenizer, expected):
    assert len(expected["texts"]) > 200
    for text, ids, decoded in expected["texts"]:
        assert tokenizer(text)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == decoded, text
    for ids, decoded in expected["ids"]:
        assert tokenizer.decode(np.array(ids, np.int32)) == decoded, ids


def test_batches_are_padded_on_the_right(tokenizer):
    batch = tokenizer(["明月", "明月何时照我还"], padding=True)
    short, long = batch["input_ids"]
    assert len(short) == len(long) and short[-1] == tokenizer.pad_token_id == 6 and long[-1] != 6
    assert tokenizer.decode(batch["input_ids"], skip_special_tokens=True) == ["明月", "明月何时照我还"]
    assert len(tokenizer(["明月"], max_length=30, padding="max_length")["input_ids"][0]) == 30


def test_special_ids_are_pieces_but_text_cannot_spell_them(tokenizer):
    assert tokenizer.eos_token_id == 9 and tokenizer.convert_tokens_to_ids("<eot>") == 9
    assert 9 not in tokenizer("明月<eot>")["input_ids"]
    assert tokenizer.decode([9]) == "<eot>" and tokenizer.decode([9], skip_special_tokens=True) == ""


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert AutoTokenizer.from_pretrained(str(tmp_path / "saved"))("明月")["input_ids"] == tokenizer("明月")["input_ids"]
    assert AutoProcessor.from_pretrained("pangualpha_tiny").tokenizer.vocab_size == tokenizer.vocab_size


def test_a_missing_vocabulary_is_told(tmp_path):
    with pytest.raises(InputError, match="no vocabulary at"):
        type(AutoTokenizer.from_pretrained("pangualpha_tiny")).from_pretrained(str(tmp_path))
