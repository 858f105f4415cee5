"""Callers of the API that hang up, wait in a full queue, or reach the time limit."""

import json
import socket
import time

import pytest

from src.serving.service import TextService
from tests.support.serving import ROWS, ask, serving, toy_service
from tests.support.toy_runtime import SlowRuntime


def body(**changes):
    return {"model": "pangu-alpha", "prompt": "明月何时照我还", "max_tokens": 4} | changes


@pytest.fixture
def slow(tiny_vocab):
    runtime = SlowRuntime(160)
    made = toy_service(runtime, tiny_vocab, waiting_limit=1, time_limit=30.0)
    yield made
    runtime.allowed.release(100000)
    made.close()


def begin(port, **changes):
    """Open a connection and send a request on it."""
    content = json.dumps(body(max_tokens=50, **changes)).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    return connection


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_rows(slow: TextService, stream):
    with serving(slow) as port:
        connection = begin(port, n=ROWS, stream=stream)
        eventually(lambda: slow.batch.busy_rows == ROWS)
        connection.close()
        for _ in range(40):
            slow.batch.runtime.allowed.release()
            time.sleep(0.02)
        eventually(lambda: slow.batch.busy_rows == 0)
        assert slow.batch.runtime.decoded and len(slow.batch.runtime.decoded) < 45
        slow.batch.runtime.allowed.release(1000)
        assert ask(port, "POST", "/v1/completions", body())[0] == 200


def begin_query(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(b"GET /query?u=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection


@pytest.mark.parametrize("stream", [True, False, None])
def test_a_client_that_gives_up_while_it_waits_is_dropped(slow: TextService, stream):
    with serving(slow) as port:
        running = begin(port, n=ROWS)
        eventually(lambda: slow.batch.busy_rows == ROWS)
        waiting = begin(port, stream=stream) if stream is not None else begin_query(port)
        eventually(lambda: slow.batch.waiting_calls == 1)
        waiting.close()
        eventually(lambda: slow.batch.waiting_calls == 0)  # no token was decoded yet
        assert not slow.batch.runtime.decoded and len(slow.batch.runtime.joined) == ROWS
        running.close()


def test_a_full_queue(slow):
    with serving(slow) as port:
        running = begin(port, n=ROWS)
        eventually(lambda: slow.batch.busy_rows == ROWS)
        waiting = begin(port)
        eventually(lambda: slow.batch.waiting_calls == 1)
        status, headers, text = ask(port, "POST", "/v1/completions", body())
        assert (status, headers["Retry-After"]) == (429, "1")
        assert json.loads(text)["error"]["type"] == "rate_limit_error"
        slow.batch.runtime.allowed.release(1000)
        for connection in (running, waiting):
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()


def test_a_request_that_takes_too_long(slow):
    slow.batch.time_limit = 0.2
    with serving(slow) as port:
        status, _, text = ask(port, "POST", "/v1/completions", body())
        assert status == 504 and "no answer within 0.2 seconds" in text
        slow.batch.runtime.allowed.release()  # the token for which the first request waited
        status, _, text = ask(port, "POST", "/v1/completions", body(stream=True))
        assert status == 200 and '"code": 504' in text and "[DONE]" not in text
