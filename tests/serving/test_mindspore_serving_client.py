"""The client of MindSpore Serving against a server that gives prepared answers: backend, errors, proxies."""

import http.server
import json
import threading

import pytest

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.common.settings import GenerationConfig
from src.inference.manifest import Manifest
from src.serving.backends import Answer, is_loopback
from src.serving.chat import NEXT_QUESTION, Turn, dialogue
from src.serving.mindspore_serving_client import ServingBackend, ServingClient, UnreachableError
from src.tokenization import load_tokenizer
from tests.support.programs import TINY

PREDICTED = {"output_sentence": "明月", "output_ids": [11, 12], "log_probs": [-0.5, -0.25], "finish_reason": "end"}


class Prepared(http.server.BaseHTTPRequestHandler):
    """Answers every request with the server's `status` and `body`, after `wait` allows it, and records what it got."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, json.loads(content or "null")))
        assert self.server.wait.wait(20)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST

    def log_message(self, *message):
        """Write no log."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Prepared) as made:
        made.requests, made.wait, made.status, made.body = [], threading.Event(), 200, b"{}"
        made.wait.set()
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.wait.set()
        made.shutdown()
        thread.join()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def give(server, status, body):
    server.status, server.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def backend(server, tiny_vocab):
    manifest = Manifest(TINY, "jieba", None, 7, 4, [], [])
    return ServingBackend(ServingClient(address(server)), load_tokenizer("jieba", tiny_vocab), manifest)


def test_answers_and_scores(backend, server):
    give(server, 200, {"instances": [PREDICTED, PREDICTED | {"output_sentence": "光", "finish_reason": "length"}]})
    config = GenerationConfig(max_new_tokens=5, method="sample", top_k=3, stop=["。"], seed=4)
    [[first, second]] = backend.complete(["春", [3, 4]], [7, 8], config)
    assert (first.text, first.tokens, first.log_prob, first.finish_reason) == ("明月", [11, 12], -0.75, "end")
    assert (second.text, second.finish_reason) == ("光", "length")
    [(path, body)] = server.requests
    assert path == "/model/pangu:predict"
    for sent, own in zip(
        body["instances"], ({"input_sentence": "春", "number": 7}, {"input_ids": [3, 4], "number": 8}), strict=True
    ):
        assert own.items() <= sent.items() and sent["max_generate_length"] == 5 and sent["return_scores"]
        assert {name: sent[name] for name in ("method", "top_k", "stop", "seed")} == {
            "method": "sample",
            "top_k": 3,
            "stop": ["。"],
            "seed": 4,
        }
    give(server, 200, {"instances": [{"log_probs": [-1.0, -2.0]}]})
    assert backend.score([5, 6, 7]) == [-1.0, -2.0]
    assert server.requests[-1] == ("/model/pangu:score", {"instances": [{"input_ids": [5, 6, 7], "start": 1}]})
    with pytest.raises(InputError, match="--backend local"):
        next(backend.complete(["春"], [0], config, likeliest=2))


def test_a_chat_over_serving(backend, server):
    """What a page does with any backend, it can do with MindSpore Serving."""
    give(server, 200, {"instances": [PREDICTED]})
    turns = [Turn("user", "何时")]
    assert list(backend.reply(backend.name, turns, GenerationConfig())) == [Answer("明月", "stop")]
    [(_, body)] = server.requests
    assert body["instances"][0]["input_ids"] == backend.tokenizer.encode(dialogue(turns))
    assert body["instances"][0]["stop"] == [NEXT_QUESTION]
    assert backend.model_list() == [backend.name]


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (400, {"error": "not JSON"}, InputError, "^not JSON$"),
        (422, {"error": "top_k is -1"}, InputError, "^top_k is -1$"),
        (429, {"error": "64 wait"}, BusyError, "^64 wait$"),
        (504, {"error": "too slow"}, TimeLimitError, "^too slow$"),
        (503, {"error": "the model is loading"}, BackendError, "^the model is loading$"),
        (404, b"<h1>Not\nhere</h1>", BackendError, "^status 404: <h1>Not here</h1>$"),
        (500, b"", BackendError, "^status 500: nothing$"),
        (200, b"<h1>hello</h1>", BackendError, "<h1>hello</h1>"),
        (200, {"instances": []}, BackendError, '"instances": '),
        (200, {"instances": [{"error_code": 1, "error_msg": "no such graph"}]}, BackendError, "no such graph"),
        (200, {"error_msg": "the servable is not available"}, BackendError, "not available"),
        (200, [1], BackendError, r"\[1\]"),
    ],
)
def test_a_status_or_a_strange_answer_becomes_an_error(server, status, body, kind, told):
    give(server, status, body)
    with pytest.raises(kind, match=told) as raised:
        ServingClient(address(server)).call("predict", [{"input_sentence": "春"}])
    assert not isinstance(raised.value, UnreachableError)


def test_health(server):
    client = ServingClient(address(server) + "/")
    client.check()
    assert server.requests == [("/health", None)]
    give(server, 503, {"error": "the model is loading"})
    with pytest.raises(BackendError, match="loading"):
        client.check()


def test_a_server_that_is_slow_or_not_there(server):
    server.wait.clear()
    with pytest.raises(TimeLimitError, match="within 0.2 seconds"):
        ServingClient(address(server), time_limit=0.2).check()
    with pytest.raises(UnreachableError, match="MindSpore Serving does not answer"):
        ServingClient("http://127.0.0.1:1").call("score", [])


@pytest.mark.parametrize("wrong", ["", "127.0.0.1:1500", "ftp://127.0.0.1", "http://", "http://a:port"])
def test_what_is_no_address(wrong):
    with pytest.raises(InputError, match="is no address such as http://127.0.0.1:1500"):
        ServingClient(wrong)


def test_requests_to_this_machine_go_to_no_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    ServingClient(address(server)).check()
    ServingClient(address(server).replace("127.0.0.1", "localhost")).check()
    assert len(server.requests) == 2


def test_which_addresses_are_of_this_machine():
    assert all(
        map(
            is_loopback,
            (
                "http://localhost",
                "http://127.0.0.1:1500/v1",
                "https://[::1]:80",
                "http://127.8.0.1",
                "http://0.0.0.0:1",
            ),
        )
    )
    assert not any(
        map(is_loopback, ("http://localhost.example", "http://10.0.0.1", "http://h", "127.0.0.1", "http://[1"))
    )
