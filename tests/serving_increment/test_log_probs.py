"""Log-probabilities and echoed prompts in the API: what a harness reads from them."""

import json

import numpy as np
import openai
import pytest

from serving_increment.flask.log_probs import text_offsets, token_text
from src.tokenization import load_tokenizer
from tests.support.make_tokenizer_data import make_gpt
from tests.support.serving import ask, serving, toy_service
from tests.support.toy_runtime import ToyRuntime

MODEL, PROMPT, END = "pangu-alpha", "明月何时照我还", 9


class SaidRuntime(ToyRuntime):
    """Finds some ids likely everywhere, in their order."""

    def __init__(self, vocab_size, *likely):
        super().__init__(vocab_size)
        for place, token in enumerate(likely):
            self.table[:, :, token] = 60 - 5 * place


@pytest.fixture
def choice(tiny_vocab):
    """A function that asks a runtime for a completion and returns its choice."""

    def answer(runtime, vocabulary=tiny_vocab, kind="jieba", **asked):
        service = toy_service(runtime, vocabulary, kind=kind)
        try:
            with serving(service) as port:
                client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
                settings = dict(model=MODEL, prompt=PROMPT, max_tokens=1, temperature=0)
                return client.completions.create(**settings | asked).choices[0]
        finally:
            service.close()

    return answer


def test_an_echoed_prompt_has_alternatives_and_the_end_token_an_entry(choice, tiny_vocab):
    """A harness drops one generated token and reads the rest: alternatives of all tokens but the first."""
    tokenizer = load_tokenizer("jieba", tiny_vocab)
    ids = tokenizer.encode(PROMPT)
    runtime = SaidRuntime(160, END)
    found = choice(runtime, echo=True, logprobs=2)
    told = found.logprobs
    assert (found.text, found.finish_reason) == (PROMPT, "stop")
    assert told.tokens == [tokenizer.decode([token]) for token in [*ids, END]]
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    expected = [runtime.log_probs(([*ids, END])[:place])[([*ids, END])[place]] for place in range(1, len(ids) + 1)]
    assert told.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert [max(top, key=top.get) for top in told.top_logprobs[1:]] == ["<eot>"] * len(ids)
    assert all(len(top) == 2 for top in told.top_logprobs[1:])
    assert told.text_offset[-1] == len(PROMPT)
    [streamed] = [
        json.loads(line[6:])["choices"][0]["logprobs"]
        for line in _events(toy_service(runtime, tiny_vocab), echo=True, logprobs=2)
    ]
    assert streamed["tokens"] == told.tokens and streamed["top_logprobs"] == told.top_logprobs


def _events(service, **asked):
    with serving(service) as port:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "stream": True} | asked
        text = ask(port, "POST", "/v1/completions", body)[2]
    service.close()
    return [line for line in text.splitlines() if line.startswith("data: {")]


def test_ids_with_one_text_do_not_hide_each_other(choice, tiny_vocab):
    tokenizer = load_tokenizer("jieba", tiny_vocab)
    ids_by_text = {}
    for token in range(tokenizer.vocab_size):
        ids_by_text.setdefault(tokenizer.decode([token]), []).append(token)
    text, (first, second) = next((text, ids) for text, ids in ids_by_text.items() if len(ids) == 2 and text)
    other = next(ids[0] for text, ids in ids_by_text.items() if len(ids) == 1 and ids[0] > 30)
    told = choice(SaidRuntime(160, first, second, other), logprobs=2).logprobs
    assert told.top_logprobs == [{text: told.token_logprobs[0], tokenizer.decode([other]): pytest.approx(-10, abs=0.1)}]


def test_a_model_that_can_not_tell_alternatives_says_so(tiny_vocab):
    service = toy_service(ToyRuntime(160), tiny_vocab)
    service._logits = None
    with serving(service) as port:
        asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, "echo": True, "logprobs": 1}
        status, _, text = ask(port, "POST", "/v1/completions", asked)
        assert status == 422 and "ask for echo with logprobs 0" in json.loads(text)["error"]["message"]
        assert ask(port, "POST", "/v1/completions", asked | {"logprobs": 0})[0] == 200
    service.close()


def test_the_echo_is_the_prompt_as_sent(choice):
    """The tokenizer folds full-width forms and loses tabs."""
    sent = "明月\t何时：照我还"
    found = choice(ToyRuntime(160), prompt=sent, echo=True, logprobs=0)
    assert found.text.startswith(sent)
    told = found.logprobs
    assert told.text_offset[-1] == len(sent)
    for token, start in zip(told.tokens[:-1], told.text_offset, strict=False):
        assert token in ("", ":", "⁇") or found.text[start:].startswith(token), (token, start)


@pytest.fixture(scope="module")
def bytes_vocab(tmp_path_factory):
    return make_gpt(tmp_path_factory.mktemp("gpt"), 0)


def test_parts_of_characters_have_their_bytes_and_places(choice, bytes_vocab):
    tokenizer = load_tokenizer("gpt", bytes_vocab)
    text = "a龘b"
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode() and len(ids) == 5
    assert {tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)} >= {
        bytes([one]) for one in range(256)
    }
    assert text_offsets(ids, tokenizer, text) == [0, 1, 1, 1, 2]
    assert token_text(tokenizer, ids[1]) == "bytes:\\xe9"
    told = choice(ToyRuntime(tokenizer.vocab_size), bytes_vocab, "gpt", prompt=text, echo=True, logprobs=3).logprobs
    assert told.tokens[:5] == ["a", "bytes:\\xe9", "bytes:\\xbe", "bytes:\\x98", "b"]
    assert told.text_offset == [0, 1, 1, 1, 2, 3]
    assert all(len(top) == 3 for top in told.top_logprobs[1:])


def test_offsets_where_bytes_are_no_characters(bytes_vocab):
    tokenizer = load_tokenizer("gpt", bytes_vocab)
    by_byte = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    ids = [by_byte[bytes([byte])] for byte in b"\xe9\xbea\xffb\x98"]
    text = tokenizer.decode(ids)
    assert [text[place] for place in text_offsets(ids, tokenizer, text)] == list("��a�b�")


def test_a_chat_tells_raw_bytes(bytes_vocab):
    tokenizer = load_tokenizer("gpt", bytes_vocab)
    [first, *_] = tokenizer.encode("龘")
    service = toy_service(SaidRuntime(tokenizer.vocab_size, first), bytes_vocab, kind="gpt")
    with serving(service) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        told = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "a"}],
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=1,
        ).choices[0]
    service.close()
    [entry] = told.logprobs.content
    assert entry.bytes == entry.top_logprobs[0].bytes == [0xE9]


def test_a_streamed_chat_ends_with_an_empty_delta(tiny_vocab):
    service = toy_service(ToyRuntime(160, spread=4.0), tiny_vocab)
    with serving(service) as port:
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 6, "stream": True}
        text = ask(port, "POST", "/v1/chat/completions", body | {"temperature": 0})[2]
    service.close()
    choices = [json.loads(line[6:])["choices"][0] for line in text.splitlines() if line.startswith("data: {")]
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "length")
    assert choices[0]["delta"]["role"] == "assistant"
    assert all(choice["delta"]["content"] and choice["finish_reason"] is None for choice in choices[:-1])


def test_a_scored_prompt_does_not_depend_on_the_way(tiny_vocab):
    """`score_likeliest` gives the log-probabilities of `score`."""
    service = toy_service(ToyRuntime(160), tiny_vocab)
    ids = service.tokenizer.encode(PROMPT)
    log_probs, likeliest = service.score_likeliest(ids, 3)
    assert log_probs == pytest.approx(np.asarray(service.score(ids)), abs=1e-5)
    assert [top[0][1] for top in likeliest] == [
        pytest.approx(service.batch.runtime.log_probs(ids[:place]).max(), abs=1e-5) for place in range(1, len(ids))
    ]
    service.close()
