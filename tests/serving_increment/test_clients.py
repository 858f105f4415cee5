"""What OpenAI's clients send: taken if it can be done or asks for nothing, else refused by name."""

import json
from urllib.parse import quote

import pytest

from tests.support.serving import ROWS, ask, serving, toy_service
from tests.support.toy_runtime import ToyRuntime

MODEL, PROMPT, NAME = "pangu-alpha", "明月何时照我还", "group/模型"


@pytest.fixture(scope="module")
def service(tiny_vocab):
    made = toy_service(ToyRuntime(160, spread=4.0), tiny_vocab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def port(service):
    with serving(service) as port:
        yield port


def completed(port, **asked):
    status, _, text = ask(port, "POST", "/v1/completions", {"model": MODEL, "prompt": PROMPT, "max_tokens": 6} | asked)
    return status, json.loads(text)


def chat(port, messages=None, **asked):
    body = {"model": MODEL, "messages": messages or [{"role": "user", "content": PROMPT}], "temperature": 0}
    status, _, text = ask(port, "POST", "/v1/chat/completions", body | {"max_tokens": 6} | asked)
    return status, json.loads(text)


def texts(answer):
    status, content = answer
    assert status == 200, content
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in content["choices"]]


FIELDS = [
    "n",
    "stream",
    "stop",
    "seed",
    "top_p",
    "user",
    "logprobs",
    "stream_options",
    "logit_bias",
    "frequency_penalty",
]
NOTHING = {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "user": "u" * 5000, "logit_bias": {}}


def test_null_is_not_given(port):
    nulls = dict.fromkeys(FIELDS)
    assert texts(completed(port, temperature=0, best_of=None, suffix=None, **nulls)) == texts(
        completed(port, temperature=0)
    )
    nulls |= dict.fromkeys(["tools", "tool_choice", "response_format", "max_completion_tokens", "top_logprobs"])
    messages = [{"role": "user", "content": PROMPT, "name": None, "tool_calls": None}]
    assert texts(chat(port, messages, **nulls)) == texts(chat(port))
    assert len(texts(completed(port, temperature=None, max_tokens=None))) == 1


def test_what_asks_for_nothing_is_taken(port):
    assert texts(completed(port, temperature=0, **NOTHING)) == texts(completed(port, temperature=0))
    no_tools = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}}
    assert texts(chat(port, **NOTHING, **no_tools)) == texts(chat(port))


def test_text_parts_are_joined_and_a_developer_is_the_system(port):
    plain = [{"role": "system", "content": "低头思故乡"}, {"role": "user", "content": PROMPT}]
    parts = [{"type": "text", "text": PROMPT[:3]}, {"type": "text", "text": PROMPT[3:]}]
    other = [
        {"role": "developer", "content": [{"type": "text", "text": "低头思故乡"}]},
        {"role": "user", "content": parts, "name": "Li"},
    ]
    found, expected = chat(port, other)[1], chat(port, plain)[1]
    assert [found["choices"], found["usage"]] == [expected["choices"], expected["usage"]]
    assert found["usage"]["prompt_tokens"] > chat(port)[1]["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"tool_choice": "required"}, "tool_choice: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"reasoning_effort": "high"}, "reasoning_effort: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages: "),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages: "),
        ({"logit_bias": {"x": 1}}, "logit_bias: 'x' is no id of a token"),
        ({"logit_bias": {"160": 1}}, "logit_bias has the id 160, outside the vocabulary"),
        ({"logit_bias": {"5": 101}}, "logit_bias: "),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(port, asked, told):
    status, content = chat(port, **asked)
    assert status == 422 and content["error"]["message"].startswith(told)


def test_refusals_of_completions(port):
    for asked, told in (
        ({"suffix": "a"}, "suffix: "),
        ({"best_of": 1, "n": 2}, "best_of is 1; it must be at least n"),
        ({"best_of": 2, "stream": True}, "best_of can't be streamed"),
        ({"prompt": ["a"] * 1025}, "1025 prompts with 1 answers each are too many"),
        ({"prompt": ["a"] * 100, "n": 11}, "100 prompts with 11 answers each are too many"),
    ):
        status, content = completed(port, **asked)
        assert status == 422 and told in content["error"]["message"]


def test_logit_bias(port, service):
    [banned] = service.tokenizer.encode("月")[-1:]
    forced = texts(completed(port, logit_bias={str(banned): 100}, temperature=1, seed=3))
    assert forced == [service.tokenizer.decode([banned] * 6)]
    [plain] = texts(completed(port, temperature=0, max_tokens=1))
    [token] = [token for token in range(service.tokenizer.vocab_size) if service.tokenizer.decode([token]) == plain][:1]
    biased = completed(port, temperature=0, max_tokens=1, logit_bias={str(token): -100}, logprobs=0)[1]["choices"][0]
    assert biased["text"] != plain
    assert biased["logprobs"]["token_logprobs"][0] < 0  # of the model's own distribution


def test_best_of_returns_the_likeliest(port):
    asked = dict(temperature=3, seed=4, logprobs=0)
    _, all_of_them = completed(port, n=4, **asked)
    means = [
        sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["token_logprobs"])
        for choice in all_of_them["choices"]
    ]
    ranked = [
        choice["text"] for _, choice in sorted(zip(means, all_of_them["choices"], strict=True), key=lambda one: -one[0])
    ]
    _, best = completed(port, n=2, best_of=4, **asked)
    assert [choice["text"] for choice in best["choices"]] == ranked[:2] and len(set(ranked)) == 4
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"] == all_of_them["usage"]


def test_more_answers_than_rows_are_given_in_turns(port):
    together = texts(completed(port, prompt=[PROMPT, "低头思故乡", "春风"], n=3, temperature=2, seed=1))
    assert len(together) == 9 > 2 * ROWS
    assert together[:3] == texts(completed(port, n=3, temperature=2, seed=1))
    assert together[6:] == texts(completed(port, prompt="春风", n=3, temperature=2, seed=1))
    body = {"model": MODEL, "prompt": [PROMPT] * 9, "max_tokens": 6, "temperature": 2, "seed": 1, "stream": True}
    streamed = [""] * 9
    for line in ask(port, "POST", "/v1/completions", body)[2].splitlines():
        if line.startswith("data: {"):
            [choice] = json.loads(line[6:])["choices"]
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts(completed(port, prompt=[PROMPT] * 9, temperature=2, seed=1))


def test_numbers_that_other_servers_take(port):
    assert texts(completed(port, top_k=-1, seed=5)) == texts(completed(port, top_k=0, seed=5))
    assert texts(completed(port, top_p=0, temperature=2)) == texts(completed(port, temperature=0))
    assert (
        len({*texts(completed(port, seed=-1)), *texts(completed(port, seed=-1)), *texts(completed(port, seed=-1))}) > 1
    )
    assert texts(completed(port, seed=-7)) == texts(completed(port, seed=-7))


def test_a_model_name_with_a_slash(service):
    with serving(service, model_name=NAME) as port:
        for path in (NAME, quote(NAME, safe="/"), quote(NAME, safe="")):
            status, _, text = ask(port, "GET", f"/v1/models/{quote(path, safe='/%')}")
            assert status == 200 and json.loads(text)["id"] == NAME


def test_half_a_surrogate_pair_where_a_name_belongs(port):
    for body, wanted in (
        (r'{"model": "\ud800", "prompt": "a"}', 404),
        (r'{"model": "pangu-alpha", "prompt": "a", "\ud800": 1}', 422),
        (r'{"model": "pangu-alpha", "prompt": "a", "user": "\ud800"}', 200),
        (r'{"model": "pangu-alpha", "prompt": "a", "stop": "\ud800"}', 422),
        (r'{"model": "pangu-alpha", "prompt": "a", "logit_bias": {"\ud800": 1}}', 422),
    ):
        status, _, text = ask(port, "POST", "/v1/completions", body)
        assert status == wanted, text


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"model":' * 100_000, '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"]
)
def test_json_that_is_too_deep(port, body):
    status, _, text = ask(port, "POST", "/v1/completions", body)
    assert status == 400 and "not valid JSON" in text


def test_too_many_prompts_are_counted_before_they_become_ids(service, port, monkeypatch):
    encoded = []
    encode = service.tokenizer.encode
    monkeypatch.setattr(service.tokenizer, "encode", lambda text: encoded.append(text) or encode(text))
    for prompt in (["a"] * 100_000, [[1]] * 100_000):
        status, content = completed(port, prompt=prompt)
        assert status == 422 and "100000 prompts" in content["error"]["message"] and not encoded
    assert completed(port)[0] == 200 and encoded == [PROMPT]
