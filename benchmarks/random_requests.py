"""Random requests to the servers, valid and invalid ones, with the statuses that may answer them."""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

TEXTS = [
    "明月",
    "四川的省会是哪里?",
    "问:谁?\n答:",
    "the quick brown fox",
    "\u2028\U0001f600",
    "a" * 3000,
    " ",
    "<b>&amp;\x00",
]
SHORT = ["明月", "a", "1+1", "\u2028"]  # also a model of few positions can read some of them
ODD = [
    None,
    True,
    False,
    -1,
    0,
    1.5,
    10**30,
    1e308,
    "",
    "1",
    "\ud800",
    "中" * 2000,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    ["a", 1],
]
JUNK = ["", "{", "[" * 100_000, "null", "[]", '"a"', "NaN", '{"a": 1e999}', "\x00\xff", '{"model": "pangu-alpha"}']
FIELDS = ("n", "stream", "stream_options", "stop", "seed", "temperature", "top_p", "top_k", "logit_bias", "user")
FIELDS += (
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "metadata",
    "service_tier",
    "unknown",
    "model",
)
OTHER_SITE = {"Origin": "http://127.0.0.1:1"}
ANSWERED, REFUSED = {200, 429, 503, 504}, {400, 403, 404, 405, 413, 415, 422, 429}
Draw = random.Random


class Asked(NamedTuple):
    """A request.

    Attributes:
        name: Kind of the request, for the table.
        method: HTTP method.
        path: Path with its query.
        body: JSON text, or None.
        headers: Headers besides those of JSON.
        allowed: Statuses that may answer it.
        reads: Bytes of the answer that the caller reads before it hangs up; None for all.
    """

    name: str
    method: str
    path: str
    body: str | None = None
    headers: dict[str, str] | None = None
    allowed: frozenset[int] | set[int] = frozenset(ANSWERED)
    reads: int | None = None


Maker = Callable[[Draw], Asked]


def _generation(draw: Draw) -> dict[str, Any]:
    """Return valid fields that completions and chats share."""
    fields = {
        "model": "pangu-alpha",
        "max_tokens": draw.randint(1, 24),
        "n": draw.choice([1, 1, 2]),
        "stream": draw.random() < 0.5,
        "stop": draw.choice([None, "月", ["\n", "a"]]),
        "seed": draw.choice([None, -1, draw.getrandbits(60)]),
        "temperature": draw.choice([0, 0.7, 100]),
        "top_p": draw.choice([0, 0.5, 1]),
        "top_k": draw.choice([-1, 0, 5]),
        "frequency_penalty": draw.uniform(-2, 2),
        "logit_bias": draw.choice([{}, {"20": 100}, {"21": -100.0}]),
    }
    return fields if draw.random() < 0.8 else fields | {"stream": True, "stream_options": {"include_usage": True}}


def _prompt(draw: Draw) -> Any:
    text, ids = draw.choice(TEXTS[:5]), [draw.randrange(10, 100) for _ in range(draw.randint(1, 12))]
    return draw.choice([text, ids, [text, "a"], [ids, ids]])


def completion(draw: Draw) -> Asked:
    """Return a completion that the model can make; a text of spaces alone may be refused."""
    fields = _generation(draw) | {"prompt": _prompt(draw), "logprobs": draw.choice([None, 0, 5, 20])}
    fields |= {"echo": draw.random() < 0.3} | ({"best_of": 3} if not fields["stream"] and draw.random() < 0.2 else {})
    return Asked("completion", "POST", "/v1/completions", json.dumps(fields))


def chat(draw: Draw) -> Asked:
    """Return a chat that the model can answer."""
    roles = ["system", "user", "assistant", "developer"]
    messages = [{"role": draw.choice(roles), "content": draw.choice(SHORT)} for _ in range(draw.randint(1, 3))]
    fields = _generation(draw) | {"messages": messages, "logprobs": True, "top_logprobs": draw.choice([0, 3])}
    return Asked("chat", "POST", "/v1/chat/completions", json.dumps(fields))


def odd_fields(draw: Draw) -> Asked:
    """Return a completion or chat with odd values in some fields. Some of them are allowed."""
    asked = draw.choice([completion, chat])(draw)
    fields = json.loads(asked.body or "{}")
    names = [*FIELDS, *fields]
    fields |= {draw.choice(names): draw.choice([*ODD, draw.choice(TEXTS)]) for _ in range(draw.randint(1, 3))}
    allowed = ANSWERED | REFUSED
    return asked._replace(name=f"odd {asked.name}", body=json.dumps(fields), allowed=allowed)


def hung_up(draw: Draw) -> Asked:
    """Return a stream whose caller hangs up."""
    asked = draw.choice([completion, chat])(draw)
    fields = json.loads(asked.body or "{}") | {"stream": True, "max_tokens": 40, "best_of": None}
    if asked.name == "chat":
        del fields["best_of"]
    return asked._replace(name="hung up", body=json.dumps(fields), reads=draw.choice([0, 0, 100, 2000]))


def junk(*paths: str) -> Maker:
    """Return a maker of bodies that are no requests."""

    def make(draw: Draw) -> Asked:
        kind = draw.choice(["application/json", "text/plain", ""])
        return Asked("junk", "POST", draw.choice(paths), draw.choice(JUNK), {"Content-Type": kind}, REFUSED)

    return make


def reads(*paths: str) -> Maker:
    """Return a maker of requests to pages that exist."""
    return lambda draw: Asked("page", "GET", draw.choice(paths), allowed=ANSWERED | {204})


def strays(*paths: str) -> Maker:
    """Return a maker of requests to addresses that do not exist, with wrong methods, or from other sites."""
    nowhere = ("/nowhere", "/static/%00", "/static/../x", "/static/" + "a" * 3000, "/%ED%A0%80", "/v1/models/%ff")
    files = ("/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/queue/data")

    def make(draw: Draw) -> Asked:
        method = draw.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "FOO"])
        if draw.random() < 0.5:
            return Asked("other site", "GET", draw.choice(paths), None, OTHER_SITE, {403})
        allowed = REFUSED | {301, 308} | ({200} if method in ("HEAD", "OPTIONS") else set())
        return Asked("stray", method, draw.choice([*nowhere, *files]), None, None, allowed)

    return make


def query(draw: Draw) -> Asked:
    """Return a question to the ModelZoo's /query."""
    text = draw.choice(["a", "%E6%98%8E%E6%9C%88", "%FF%FE", "", "a" * 3000, "%00"])
    return Asked("query", "GET", f"/query?u={text}", allowed=ANSWERED | {422})


def predict(draw: Draw) -> Asked:
    """Return a request to MindSpore Serving's predict."""
    method, instance = "predict", {"input_sentence": draw.choice(TEXTS[:5]), "max_generate_length": draw.randint(1, 16)}
    if draw.random() < 0.4:
        instance |= {"temperature": 0.9, "top_p": 0.5, "seed": draw.getrandbits(30), "return_scores": True}
    if draw.random() < 0.2:
        method, instance = "score", {"input_ids": [draw.randrange(10, 100) for _ in range(9)], "start": 1}
    elif draw.random() < 0.1:
        method, instance = "identity", {}
    path = draw.choice(["/model/pangu:", "/model/pangu/version/1:"]) + method
    return Asked(method, "POST", path, json.dumps({"instances": [instance] * draw.randint(1, 3)}))


def odd_predict(draw: Draw) -> Asked:
    """Return a request to MindSpore Serving with odd fields."""
    asked = predict(draw)
    binary = {"b64": draw.choice(["/w==", "!", "YWJjZA=="]), "type": draw.choice(["str", "int32"]), "shape": [1 << 40]}
    names = [
        "input_sentence",
        "options",
        "input_ids",
        "start",
        "seed",
        "number",
        "stop",
        "end_token",
        "top_k",
        "\ud800",
    ]
    [instance, *_] = json.loads(asked.body or "{}")["instances"]
    values = [*ODD, binary, [[1], [2, 3]], [1 << 70], draw.choice(TEXTS)]
    instance |= {draw.choice(names): draw.choice(values) for _ in range(draw.randint(1, 2))}
    return asked._replace(
        name=f"odd {asked.name}", body=json.dumps({"instances": [instance]}), allowed=ANSWERED | REFUSED
    )


def gradio_event(config: dict[str, Any]) -> Maker:
    """Return a maker of events of a Gradio page, with usual values or odd ones.

    Args:
        config: What the page's /config tells.
    """
    components = {component["id"]: component for component in config["components"]}
    events = [event for event in config["dependencies"] if event["backend_fn"]]
    odd = [*ODD, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "x", [{"role": "user", "content": "a"}]]

    def make(draw: Draw) -> Asked:
        event = draw.choice(events)
        values = []
        for place in event["inputs"]:
            kind, value = components[place]["type"], components[place]["props"].get("value")
            usual = {"chatbot": [], "textbox": value or draw.choice(TEXTS[:5]), "dataset": 0}
            values.append(usual.get(kind, value))
        name, allowed = "event", ANSWERED
        if values and draw.random() < 0.5:
            name, allowed = "odd event", ANSWERED | REFUSED
            values[draw.randrange(len(values))] = draw.choice(odd)
        body = {"data": values, "fn_index": event["id"], "session_hash": f"s{draw.getrandbits(60)}"}
        if any(name == "example_select" for _, name in event["targets"]):
            body["event_data"] = {"index": 0, "value": {"text": draw.choice(TEXTS[:5])}}
        return Asked(name, "POST", "/gradio_api/queue/join", json.dumps(body), allowed=allowed)

    return make


PAGES = (
    "/",
    "/static/page.js",
    "/static/page.css",
    "/health",
    "/metrics",
    "/v1/models",
    "/openapi.json",
    "/favicon.ico",
)
GRADIO_PAGES = ("/", "/config", "/theme.css", "/manifest.json", "/robots.txt")
PAGE_MAKERS = [
    completion,
    chat,
    odd_fields,
    odd_fields,
    hung_up,
    query,
    reads(*PAGES),
    strays("/", "/health", "/query?u=a"),
]
PAGE_MAKERS += [junk("/v1/completions", "/v1/chat/completions")]
SERVING_MAKERS = [predict, predict, odd_predict, odd_predict, reads("/health"), strays("/health")]
SERVING_MAKERS += [junk("/model/pangu:predict", "/model/pangu:score")]


def gradio_makers(config: dict[str, Any]) -> list[Maker]:
    """Return the makers for a Gradio page."""
    event = gradio_event(config)
    return [event, event, reads(*GRADIO_PAGES), strays(*GRADIO_PAGES), junk("/gradio_api/queue/join")]
