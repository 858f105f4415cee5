"""The tokenizer for Transformers gives the project's ids and texts."""

import pytest
from transformers import AutoTokenizer


def test_ids_and_texts_are_the_project_s(tokenizer, expected):
    assert len(expected["texts"]) >= 300 and len(expected["ids"]) >= 100
    for text, ids, decoded in expected["texts"]:
        assert tokenizer(text)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == decoded, text
    for ids, decoded in expected["ids"]:  # any ids, with special pieces among them
        assert tokenizer.decode(ids) == decoded, ids


def test_a_chat_is_the_project_s_dialogue(tokenizer, expected):
    for messages, text, ids in expected["chats"]:
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
    with pytest.raises(Exception, match="role is system, user or assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_special_pieces_are_known_and_text_cannot_spell_them(tokenizer, port):
    known = [tokenizer.convert_tokens_to_ids(piece) for piece in ("<sep>", "<pad>", "<mask>", "<eod>", "<eot>")]
    assert known == [5, 6, 7, 8, 9] == sorted(tokenizer.all_special_ids)
    named = (tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.eod_token_id, tokenizer.eos_token_id)
    assert named == (5, 6, 8, 9)
    assert not {5, 9} & set(tokenizer("<sep>明月<eot>")["input_ids"])
    assert tokenizer("明月<eot>", split_special_tokens=False)["input_ids"][-1] == 9
    for_trl = AutoTokenizer.from_pretrained(port, trust_remote_code=True, split_special_tokens=False)
    assert for_trl("明月<eot>")["input_ids"] == [*tokenizer("明月")["input_ids"], 9]
    assert tokenizer.decode([9, 5], skip_special_tokens=True) == ""
    assert len(tokenizer) == tokenizer.vocab_size


def test_batches_are_padded_on_the_left(tokenizer):
    short, long = tokenizer("明月")["input_ids"], tokenizer("明月何时照我还")["input_ids"]
    batch = tokenizer(["明月", "明月何时照我还"], padding=True)
    missing = len(long) - len(short)
    assert missing > 0 and batch["input_ids"] == [[6] * missing + short, long]
    assert batch["attention_mask"][0] == [0] * missing + [1] * len(short)


def test_a_saved_tokenizer_is_the_same(tokenizer, expected, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert all(again(text)["input_ids"] == ids for text, ids, _ in expected["texts"][:20])
    assert (again.padding_side, again.eod_token_id, again.model_max_length) == ("left", 8, 48)
    assert again.get_chat_template() == tokenizer.get_chat_template()


def test_a_wrong_vocabulary_is_told(port, tmp_path):
    with pytest.raises(ValueError, match="no vocab.model: put the model's vocabulary beside"):
        for name in ("tokenizer_config.json", "tokenization_pangu_alpha.py"):
            (tmp_path / name).write_bytes((port / name).read_bytes())
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    no_utf8 = (port / "vocab.model").read_bytes().replace(b"<eod>", b"<e\xffd>")
    for content in (b"no vocabulary", no_utf8):
        (tmp_path / "vocab.model").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a SentencePiece model"):
            AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    with pytest.raises(ValueError, match="id 4000 is outside the vocabulary"):
        AutoTokenizer.from_pretrained(port, trust_remote_code=True).decode([4000])
