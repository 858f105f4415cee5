"""Texts, stop texts and streamed pieces, on a toy model."""

import numpy as np
import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.serving.terminal import read_prompts
from src.tokenization_jieba import JiebaTokenizer
from tests.support.toy_runtime import PAD, ToyRuntime, assert_same, greedy_answer


class PieceTokenizer:
    """A byte-level vocabulary. It can only encode characters that are pieces."""

    def __init__(self, pieces):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.vocab_size = len(pieces)

    def encode(self, text):
        return [self.pieces.index(character.encode()) for character in text]

    def decode(self, ids):
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")

    def fold(self, text):
        return text


class Script(ToyRuntime):
    """Generates the same tokens after any prompt."""

    def __init__(self, tokens, vocab_size):
        super().__init__(vocab_size)
        self.tokens = tokens

    def prefill(self, ids, lengths, capacity):
        self.lengths = lengths
        super().prefill(ids, lengths, capacity)
        return self._say(lengths - 1)

    def decode(self, ids, positions, rows=None):
        super().decode(ids, positions, rows)
        return self._say(positions)

    def _say(self, positions):
        return np.eye(self.vocab_size, dtype=np.float32)[[self.tokens[i] for i in positions + 1 - self.lengths]]


PIECES = ["<end>", "a", "b", "ab", "bca", "c", "\n", "问", "：", "问：", "中".encode()[:1], "中".encode()[1:], b"\xff"]


def said(pieces, **settings):
    """Return the answer of `generate` and the pieces of `stream` for a model that generates `pieces`."""
    tokenizer = PieceTokenizer(PIECES)
    tokens = [tokenizer.pieces.index(piece.encode() if isinstance(piece, str) else piece) for piece in pieces]
    config = GenerationConfig(max_new_tokens=len(tokens), end_token=0, **settings)
    generator = TextGenerator(Script(tokens, len(PIECES)), tokenizer, config, PAD)
    [[completion]] = generator.generate(["b"])
    return completion, list(generator.stream("b"))


@pytest.mark.parametrize(
    "pieces, stop, text, reason, streamed",
    [
        (["a", "b", "c"], [], "abc", "length", ["a", "b", "c"]),
        (["a", "b", "<end>", "c"], [], "ab", "end", ["a", "b"]),
        (["a", "b", "<end>", "c"], ["bx"], "ab", "end", ["a", "b"]),
        (["<end>"], ["a"], "", "end", []),
        (["c", "a", "\n", "问：", "b"], ["\n问"], "ca", "stop", ["c", "a"]),  # a stop text that ends within a token
        (["c", "bca", "c"], ["bc"], "c", "stop", ["c"]),
        (["c", "bca", "c"], ["ca", "bcac"], "cb", "stop", ["cb"]),
        (["a", "bca", "c"], ["ca", "bc"], "a", "stop", ["a"]),  # both come with one token: the earlier place counts
        (["a", "a", "b", "a", "c"], ["aabb", "bac"], "aa", "stop", ["aa"]),  # the first one holds text back
        (["a", "a", "a", "b", "c"], ["aab"], "a", "stop", ["a"]),
        (["a", "a", "a", "c"], ["aab"], "aaac", "length", ["a", "aac"]),
        (["c", "a", "b"], ["abc"], "cab", "length", ["c", "ab"]),  # shown at the end
        (["a", PIECES[10], PIECES[11], "b"], [], "a中b", "length", ["a", "中", "b"]),
        (["a", PIECES[10], "b"], [], "a\ufffdb", "length", ["a", "\ufffdb"]),
        (["a", b"\xff", PIECES[10]], [], "a\ufffd\ufffd", "length", ["a", "\ufffd\ufffd"]),
        (["a", "b", PIECES[10], PIECES[11], "c"], ["b中"], "a", "stop", ["a"]),
    ],
)
def test_stop_texts_and_streams(pieces, stop, text, reason, streamed):
    completion, shown = said(pieces, stop=stop)
    assert (completion.text, completion.finish_reason) == (text, reason)
    assert shown == streamed


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_streamed_pieces_add_up_to_the_answer(method):
    tokenizer = PieceTokenizer(PIECES)
    reasons = set()
    for seed in range(60):
        config = GenerationConfig(
            method=method,
            max_new_tokens=12,
            end_token=0,
            seed=seed,
            num_samples=2,
            stop=["abab", "问：a", "cc", "中b"][seed % 3 :],
            num_beams=3,
        )
        generator = TextGenerator(ToyRuntime(len(PIECES) + 3, seed=seed), tokenizer, config, PAD)
        [answers] = generator.generate(["a"])
        assert "".join(generator.stream("a")) == answers[0].text
        for answer in answers:
            decoded = tokenizer.decode(answer.tokens)
            assert decoded.startswith(answer.text) and not any(stop in answer.text for stop in config.stop)
            assert (decoded == answer.text) == (answer.finish_reason != "stop")
            reasons.add(answer.finish_reason)
    assert reasons == {"end", "stop", "length"}


def test_texts_of_different_lengths():
    tokenizer = PieceTokenizer(PIECES)
    runtime = ToyRuntime(len(PIECES))
    config = GenerationConfig(max_new_tokens=6, end_token=0)
    answers = TextGenerator(runtime, tokenizer, config, PAD).generate(["a", "abcab", "问："])
    for text, [answer] in zip(["a", "abcab", "问："], answers, strict=True):
        expected = greedy_answer(runtime, tokenizer.encode(text), 0, 6)
        assert_same(answer, expected)
        assert answer.text == tokenizer.decode(expected[0])


def test_bad_texts_are_refused_at_once():
    tokenizer = PieceTokenizer(PIECES)
    with pytest.raises(InputError, match="13 pieces but the model only 12 ids"):
        TextGenerator(ToyRuntime(12), tokenizer, GenerationConfig(), PAD)
    generator = TextGenerator(ToyRuntime(13), tokenizer, GenerationConfig(), PAD)
    with pytest.raises(InputError, match="no tokens"):
        generator.stream("")
    with pytest.raises(InputError, match="no tokens"):
        generator.generate(["a", ""])


def test_a_prompt_file_has_a_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff问：春\u2028风\x85又\x0c绿\r江\r\n\n下一个".encode())
    assert read_prompts(str(file)) == ["问：春\u2028风\x85又\x0c绿\r江", "", "下一个"]
    file.write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_prompts(str(file))


@pytest.mark.parametrize("stop", ["，", "照我，", ","])
def test_a_stop_text_is_met_as_the_tokenizer_writes_it(stop, tiny_vocab):
    """The official vocabulary's normaliser writes `,` for `，`, so a model can never write the full-width form."""
    tokenizer = JiebaTokenizer(tiny_vocab)
    tokens = tokenizer.encode("明月何时照我，春风")
    assert tokenizer.decode(tokens) == "明月何时照我,春风"
    config = GenerationConfig(max_new_tokens=len(tokens), end_token=9, stop=["\t", stop])
    generator = TextGenerator(Script(tokens, tokenizer.vocab_size), tokenizer, config, PAD)
    [[answer]] = generator.generate(["春"])
    expected = "明月何时照我,".removesuffix(tokenizer.fold(stop))
    assert (answer.text, answer.finish_reason) == (expected, "stop")
    assert "".join(generator.stream("春")) == expected
