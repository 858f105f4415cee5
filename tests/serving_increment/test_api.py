"""The OpenAI-compatible API, with OpenAI's own client, and every kind of bad request."""

import json

import openai
import pytest

from src.common.errors import BackendError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.manifest import Manifest
from src.inference.sampling import answer_numbers
from src.serving.backends import TokenBackend
from src.serving.mindspore_serving_client import ServingBackend, ServingClient
from tests.support.programs import TINY
from tests.support.serving import ROWS, ask, serving, toy_service
from tests.support.toy_runtime import PacedRuntime, ToyRuntime

MODEL = "pangu-alpha"
PROMPT = "明月何时照我还"
KEY = "a-secret"


@pytest.fixture(scope="module")
def runtime():
    return PacedRuntime(160, spread=4.0)


@pytest.fixture(scope="module")
def service(runtime, tiny_vocab):
    made = toy_service(runtime, tiny_vocab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def port(service):
    with serving(service) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def alone(runtime, service, prompt=PROMPT, **settings):
    """Return the answer of the generation loop itself."""
    config = GenerationConfig(**dict(max_new_tokens=12, end_token=9, method="sample") | settings)
    generator = TextGenerator(ToyRuntime(160, spread=4.0), service.tokenizer, config, 0)
    *_, [[answer]] = generator.completions([prompt], answer_numbers([service.tokenizer.encode(prompt)]))
    return answer


def test_completion(client, runtime, service):
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0.7, seed=3)
    expected = alone(runtime, service, temperature=0.7, seed=3)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, {"end": "stop"}.get(expected.finish_reason, "length"))
    assert answer.usage.prompt_tokens == len(service.tokenizer.encode(PROMPT))
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_seed_decides(client):
    def texts(**settings):
        return {
            client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, **settings).choices[0].text
            for _ in range(4)
        }

    assert len(texts(seed=5)) == 1 and len(texts(temperature=0)) == 1
    assert len(texts(temperature=2)) > 1


def test_prompts_of_texts_and_of_ids(client, service):
    ids = service.tokenizer.encode(PROMPT)
    both = client.completions.create(model=MODEL, prompt=[PROMPT, "低头思故乡"], max_tokens=5, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert (
        client.completions.create(model=MODEL, prompt=ids, max_tokens=5, temperature=0).choices[0].text
        == client.completions.create(model=MODEL, prompt=[ids], max_tokens=5, temperature=0).choices[0].text
        == both.choices[0].text
    )


def test_stream(client):
    """The pieces arrive one by one and add up to the answer. The last one has the token counts."""
    settings = dict(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and {chunk.id for chunk in chunks} == {chunks[0].id}


def test_stop(client):
    whole = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0).choices[0].text
    stop = whole[4:6]
    for stream in (False, True):
        answer = client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop], stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == whole[: whole.find(stop)]
        assert choices[-1].finish_reason == "stop"


def test_n(client):
    settings = dict(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=2, seed=1, n=3)
    answer = client.completions.create(**settings)
    assert len({choice.text for choice in answer.choices}) == 3
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [choice.text for choice in answer.choices]


@pytest.fixture
def even(tiny_vocab):
    """A client of a model that finds every token as likely as another, whatever the prompt."""
    runtime = ToyRuntime(160)
    runtime.table[:] = 0
    service = toy_service(runtime, tiny_vocab)
    with serving(service) as port:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    service.close()


def test_each_answer_draws_for_itself(even):
    """Equal prompts and different prompts draw independently. With a seed, the company of a prompt does not count."""

    def texts(*prompts, **settings):
        settings = dict(model=MODEL, max_tokens=12, seed=1) | settings
        return [choice.text for choice in even.completions.create(prompt=list(prompts), **settings).choices]

    other = "低头思故乡"
    together = texts(PROMPT, other, n=2)
    assert len(set(together)) == 4
    assert texts(other, PROMPT, PROMPT) == [together[2], *together[:2]]
    assert texts(PROMPT, n=3)[:2] == together[:2]
    assert texts(PROMPT, seed=2) != texts(PROMPT, seed=1) == [together[0]]
    assert len({*texts(PROMPT, seed=None), *texts(PROMPT, seed=None), together[0]}) == 3


def test_logprobs(client, runtime, service):
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3)
    expected = alone(runtime, service, method="greedy", max_new_tokens=6)
    told = answer.choices[0].logprobs
    assert told.token_logprobs == pytest.approx(expected.log_probs)
    assert told.tokens == [service.tokenizer.decode([token]) for token in expected.tokens]
    assert all(
        piece in likeliest and likeliest[piece] == max(likeliest.values()) == log_prob and len(likeliest) == 3
        for piece, log_prob, likeliest in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
    )
    streamed = [
        chunk.choices[0].logprobs.token_logprobs
        for chunk in client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=3, stream=True
        )
    ]
    assert [value for values in streamed for value in values] == told.token_logprobs


def test_echo_tells_the_prompt_and_its_scores(client, runtime, service):
    ids = service.tokenizer.encode(PROMPT)
    choice = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=3, temperature=0, logprobs=0, echo=True
    ).choices[0]
    plain = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, temperature=0).choices[0]
    assert choice.text == PROMPT + plain.text
    expected = [runtime.log_probs(ids[:place])[ids[place]] for place in range(1, len(ids))]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected)
    assert choice.logprobs.text_offset[len(ids)] == len(PROMPT)


def test_a_prompt_is_scored_without_an_answer(client, service):
    """Harnesses ask for the scores of a text by max_tokens 0."""
    settings = dict(model=MODEL, prompt=[PROMPT, "低头"], temperature=0, echo=True, logprobs=2)
    longer = client.completions.create(max_tokens=1, **settings)
    for stream in (False, True):
        answer = client.completions.create(max_tokens=0, stream=stream, **settings)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        for prompt, choice, other in zip(settings["prompt"], choices, longer.choices, strict=True):
            count = len(service.tokenizer.encode(prompt))
            assert (choice.text, choice.finish_reason) == (prompt, "length")
            assert choice.logprobs.tokens == other.logprobs.tokens[:count]
            assert choice.logprobs.token_logprobs == other.logprobs.token_logprobs[:count]
            assert choice.logprobs.top_logprobs == other.logprobs.top_logprobs[:count]
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, echo=True, extra_body={"best_of": 3})
    assert answer.choices[0].text == PROMPT and answer.usage.completion_tokens == 0


def test_chat(client, runtime, service):
    """The turns become one text by the template in docs/serving.md."""
    messages = [
        {"role": "system", "content": "低头思故乡"},
        {"role": "user", "content": "明月"},
        {"role": "assistant", "content": "天气"},
        {"role": "user", "content": "春风"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    )
    expected = alone(runtime, service, "低头思故乡\n问:明月\n答:天气\n问:春风\n答:", method="greedy", max_new_tokens=6)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(expected.log_probs)
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        client.models.retrieve("gpt-4")


def test_query_health_and_metrics(port):
    status, headers, text = ask(port, "GET", "/query?u=%E6%98%8E%E6%9C%88")
    assert status == 200 and json.loads(text)["ok"] is True and json.loads(text)["rsvp"]
    assert len(headers["X-Request-Id"]) == 12
    assert json.loads(ask(port, "GET", "/health")[2]) == {"status": "ok", "model": MODEL, "streams": True}
    told = ask(port, "GET", "/metrics")[2]
    for name in (
        "pangu_generated_tokens_total",
        "pangu_waiting_requests 0.0",
        "pangu_rows 4.0",
        'pangu_requests_total{path="/query",status="200"}',
        "pangu_time_to_first_token_seconds_count",
    ):
        assert name in told


def body(**changes):
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 4} | changes


WRONG = {
    "no JSON": ("{'prompt': 1}", 400, "not valid JSON"),
    "half a character": (b"\xe6\x98", 400, "not valid JSON"),
    "not a number": ('{"model": "pangu-alpha", "prompt": "a", "temperature": NaN}', 400, "not valid JSON"),
    "deep": ("[" * 100000, 400, "not valid JSON"),
    "a list": ("[]", 422, "the body"),
    "no prompt": ({"model": MODEL}, 422, "prompt: Field required"),
    "an empty prompt": (body(prompt=""), 422, "has no tokens"),
    "a prompt of another type": (body(prompt=3), 422, "prompt: Input should be a valid string"),
    "an id outside": (body(prompt=[5, 160]), 422, "the id 160, outside the vocabulary"),
    "half a surrogate pair": ('{"model": "pangu-alpha", "prompt": "\\ud800"}', 422, "half a surrogate pair"),
    "a prompt longer than the table": (body(prompt=[5] * 64), 422, "it may have at most 63"),
    "a text that can't fit": (body(prompt=["a", "长" * 100_000]), 422, "the text has 100000 characters"),
    "a number as text": (body(temperature="1"), 422, "temperature: Input should be a valid number"),
    "a length of none": (body(max_tokens=0), 422, "max_tokens is 0, which only tells the prompt: it needs echo"),
    "a length of none of what is no token": (body(prompt=[500], max_tokens=0, echo=True), 422, "id 500 at position 0"),
    "a length of none of a long text": (body(prompt=[20] * 99, max_tokens=0, echo=True), 422, "has 99 tokens"),
    "an unknown field": (body(temprature=1), 422, "temprature: Extra inputs are not permitted"),
    "an empty stop": (body(stop=""), 422, "stop: "),
    "an unknown model": (body(model="gpt-4"), 404, "'gpt-4' is not served here"),
    "ten megabytes": (body(prompt="长" * 3500000), 413, "too large"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(port, name):
    content, wanted, told = WRONG[name]
    status, _, text = ask(port, "POST", "/v1/completions", content)
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (wanted, wanted)
    assert told in error["message"] and "\n" not in error["message"] and "Traceback" not in text
    assert ask(port, "POST", "/v1/completions", body())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "wanted"),
    [
        ("GET", "/v1/completions", {}, 405),
        ("GET", "/nothing", {}, 404),
        ("GET", "/static/../app.py", {}, 404),
        ("POST", "/v1/completions", {"Content-Type": "text/plain"}, 415),
        ("GET", "/query", {}, 422),
    ],
)
def test_wrong_routes(port, method, path, headers, wanted):
    status, _, text = ask(port, method, path, body() if method == "POST" else None, headers)
    assert status == wanted and json.loads(text)["error"]["code"] == wanted


def test_the_key(service):
    with serving(service, api_key=KEY) as port:
        for given, wanted in ((None, 401), ("Bearer another", 401), (f"Bearer {KEY}", 200)):
            headers = {"Authorization": given} if given else {}
            assert ask(port, "POST", "/v1/completions", body(), headers)[0] == wanted
            assert ask(port, "GET", "/query?u=a", headers=headers)[0] == wanted
        assert ask(port, "GET", "/health")[0] == ask(port, "GET", "/")[0] == 200


class Broken(TokenBackend):
    """A backend with an error in its code."""

    streams, rows, end_token, seq_length = True, ROWS, 9, 64

    def __init__(self, tokenizer, error):
        self.tokenizer, self.error = tokenizer, error

    def complete(self, *_):
        raise self.error

    def check(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "wanted", "told"),
    [
        (BackendError("it may be starting anew"), 503, "it may be starting anew"),
        (RuntimeError("/secret/path"), 500, "something went wrong inside the server"),
    ],
)
def test_failures_of_the_backend(service, error, wanted, told):
    with serving(Broken(service.tokenizer, error)) as port:
        status, _, text = ask(port, "POST", "/v1/completions", body())
        assert status == wanted == ask(port, "GET", "/health")[0]
        assert told in json.loads(text)["error"]["message"] and "secret" not in text


def test_a_serving_that_is_not_there(service):
    """Nothing listens at port 1 of this machine."""
    manifest = Manifest(TINY, "jieba", None, 9, ROWS, [], [])
    with serving(ServingBackend(ServingClient("http://127.0.0.1:1"), service.tokenizer, manifest)) as port:
        for path, content in (("/v1/completions", body()), ("/v1/completions", body(stream=True))):
            status, _, text = ask(port, "POST", path, content)
            assert status == 503 and "MindSpore Serving does not answer" in json.loads(text)["error"]["message"]
        assert ask(port, "GET", "/health")[0] == 503
