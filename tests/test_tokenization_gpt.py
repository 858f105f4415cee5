import json
import pickle
import random
import re
import unicodedata

import numpy as np
import pytest

from src.common.errors import InputError
from src.tokenization import GPTTokenizer
from tests.support.make_tokenizer_data import SENTENCES, byte_characters, make_gpt, merge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_gpt(tmp_path_factory.mktemp("gpt"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return GPTTokenizer(folder)


class PublishedBPE:
    """GPT-2's published encoder without a library: split the text, map bytes to characters, merge by rank."""

    # It matches classes of characters: a for letters, 0 for numbers, _ for white space, ! for others. Characters that
    # the expression names are not mapped.
    SPLIT = re.compile(r"'(?:[st]|re|ve|[md]|ll)| ?[a-z]+| ?0+| ?[!']+|[ _]+(?![^ _])|[ _]+")

    def __init__(self, folder):
        self.vocab = json.loads((folder / "vocab.json").read_text())
        merges = (folder / "merges.txt").read_text().splitlines()[1:]
        self.ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(merges)}
        self.byte_characters = byte_characters()

    @staticmethod
    def character_class(character):
        if character in " 'stremvdl":
            return character
        if character.isspace():
            return "_"
        return {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")

    def split(self, text):
        classes = "".join(map(self.character_class, text))
        return [text[match.start() : match.end()] for match in self.SPLIT.finditer(classes)]

    def encode(self, text):
        ids = []
        for word in self.split(text):
            symbols = [self.byte_characters[byte] for byte in word.encode()]
            while known := [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in self.ranks]:
                symbols = merge(symbols, min(known, key=self.ranks.get))
            ids += [self.vocab[symbol] for symbol in symbols]
        return ids

    def decode(self, ids):
        bytes_of = {character: byte for byte, character in self.byte_characters.items()}
        pieces = {number: piece for piece, number in self.vocab.items()}
        return bytes(bytes_of[c] for token in ids for c in pieces[token]).decode(errors="replace")


ALPHABET = [
    *"abestrvmdlSTRE' ''\n\t  09²Ⅷ_-,.。，月亮é́🌕\u3000\u00a0ß",
    "   ",
    "'ll",
    "'re",
    "n't",
    " the",
    "<|endoftext|>",
]


def random_texts(seed, count):
    generator = random.Random(seed)
    for _ in range(count):
        yield "".join(generator.choices([*ALPHABET, *SENTENCES], k=generator.randrange(25)))


def test_ids_follow_the_published_encoder(tokenizer, folder):
    published = PublishedBPE(folder)
    for text in [*SENTENCES, "", " ", "\n", "aaaa", "  x", *random_texts(1, 400)]:
        assert tokenizer.encode(text) == published.encode(text), text


def test_merges_are_used(tokenizer):
    text = "".join(SENTENCES)
    assert len(tokenizer.encode(text)) < 0.8 * len(text.encode())


def test_any_text_comes_back(tokenizer):
    for text in random_texts(2, 200):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_any_ids_decode_as_published(tokenizer, folder):
    published, generator = PublishedBPE(folder), random.Random(3)
    for _ in range(200):
        ids = generator.choices(range(tokenizer.vocab_size), k=12)
        assert tokenizer.decode(np.array(ids)) == published.decode(ids)


def test_end_of_text_is_every_special_id_and_cannot_be_written_in_text(tokenizer):
    special = tokenizer.vocab_size - 1
    assert tokenizer.eot_id == tokenizer.eod_id == tokenizer.pad_id == special
    assert special not in tokenizer.encode("a<|endoftext|>")
    assert tokenizer.decode([special]) == "<|endoftext|>"


def test_copy_and_the_file_work_alike(tokenizer, folder):
    for twin in (pickle.loads(pickle.dumps(tokenizer)), GPTTokenizer(folder / "vocab.json")):
        assert twin.encode(SENTENCES[9]) == tokenizer.encode(SENTENCES[9])
        assert (twin.vocab_size, twin.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)


def test_bad_ids_and_text(tokenizer):
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(InputError, match=f"id {bad} at position 0"):
            tokenizer.decode([bad])
    with pytest.raises(InputError, match="half a surrogate pair"):
        tokenizer.encode("\udc00")


def test_missing_files(tmp_path, folder):
    with pytest.raises(InputError, match=r"no vocabulary .*vocab\.json"):
        GPTTokenizer(tmp_path)
    (tmp_path / "vocab.json").write_bytes((folder / "vocab.json").read_bytes())
    with pytest.raises(InputError, match=r"no vocabulary .*merges\.txt"):
        GPTTokenizer(tmp_path)


def drop_a_byte(vocab):
    return {piece: number for piece, number in vocab.items() if piece != "Ġ"}


def number_from_one(vocab):
    return {piece: number + 1 for piece, number in vocab.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab: [], "no BPE vocabulary"),
        (lambda vocab: {}, "no BPE vocabulary"),
        (number_from_one, "does not number"),
    ],
)
def test_unfit_vocabulary(tmp_path, folder, change, message):
    vocab = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(change(vocab)))
    (tmp_path / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
    with pytest.raises(InputError, match=message):
        GPTTokenizer(tmp_path)


def test_vocabulary_without_a_byte(tmp_path, folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(drop_a_byte(vocab)))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(InputError, match="lacks some of the 256 byte pieces"):
        GPTTokenizer(tmp_path)


def test_vocabulary_that_is_not_json(tmp_path):
    (tmp_path / "vocab.json").write_bytes(random.Random(0).randbytes(100_000))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(InputError, match="no BPE vocabulary"):
        GPTTokenizer(tmp_path)


def test_fold_keeps_every_text(tokenizer):
    assert tokenizer.fold("问：a \t\n？") == "问：a \t\n？"
