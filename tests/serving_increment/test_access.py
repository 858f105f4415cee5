"""Who reaches the page's server: hosts, origins, keys, and many idle connections."""

import json
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from serving_increment.http_server import HttpServer
from tests.support.programs import ROOT, run
from tests.support.serving import ask, serving, serving_app, toy_service
from tests.support.toy_runtime import ToyRuntime

SITE = "https://a.example"
COMPLETION = {"model": "pangu-alpha", "prompt": "明月", "max_tokens": 2}
PREFLIGHT = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture(scope="module")
def service(tiny_vocab):
    made = toy_service(ToyRuntime(160), tiny_vocab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def port(service):
    with serving(service) as port:
        yield port


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
)
def test_other_sites_do_not_reach_it(port, headers):
    for method, path, body in (
        ("POST", "/v1/completions", COMPLETION),
        ("GET", "/query?u=a", None),
        ("GET", "/", None),
        ("GET", "/metrics", None),
        ("OPTIONS", "/v1/completions", None),
    ):
        status, told, text = ask(port, method, path, body, headers)
        assert status == 403 and "--allowed_" in json.loads(text)["error"]["message"], path
        assert "Access-Control-Allow-Origin" not in told
    assert ask(port, "POST", "/v1/completions", COMPLETION)[0] == 200


def test_an_allowed_site_asks_before_it_sends_the_key(service):
    with serving(service, api_key="key", allowed_origins=SITE) as port:
        status, told, _ = ask(port, "OPTIONS", "/v1/completions", None, PREFLIGHT)
        assert status == 204 and told["Access-Control-Allow-Headers"] == "authorization"
        assert "POST" in told["Access-Control-Allow-Methods"]
        for key, wanted in (("key", 200), ("wrong", 401)):
            headers = {"Origin": SITE, "Authorization": f"Bearer {key}"}
            status, told, _ = ask(port, "POST", "/v1/completions", COMPLETION, headers)
            assert status == wanted and told["Access-Control-Allow-Origin"] == SITE
        assert ask(port, "OPTIONS", "/v1/completions", None, PREFLIGHT | {"Origin": "https://b.example"})[0] == 403


def test_a_name_of_one_s_own(service):
    with serving(service, allowed_hosts="chat.example") as port:
        assert ask(port, "GET", "/", None, {"Host": "chat.example"})[0] == 200
        assert ask(port, "GET", "/", None, {"Host": "evil.example"})[0] == 403


@pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"])
def test_others_are_answered_beside_many_idle_connections(port, sent):
    """More than the server keeps: the ones that are idle for longest are closed."""
    with ExitStack() as stack:
        for _ in range(1200):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            idle.sendall(sent)
        begin = time.monotonic()
        assert ask(port, "GET", "/health")[0] == 200
        assert ask(port, "POST", "/v1/completions", COMPLETION)[0] == 200
        assert time.monotonic() - begin < 60  # not when the idle ones time out, after two minutes


def test_a_new_connection_is_not_idle_before_its_request_is_read():
    """While all others wait for answers, it is the only one without a request."""
    ended = threading.Event()

    def work(environ, start_response):
        environ["PATH_INFO"] == "/slow" and ended.wait(30)
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    with serving_app(work, connections=20) as port, ExitStack() as stack:
        for _ in range(17):
            busy = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            busy.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.5)
        caller = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        time.sleep(0.1)
        try:
            caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert caller.recv(100).startswith(b"HTTP/1.1 200")
        finally:
            ended.set()


def test_a_connection_is_looked_for_once_more_and_not_fifty_times(monkeypatch):
    """Each look is a call of the system, for which the threads that make answers have to wait."""
    looks = []
    accept = HttpServer.accept
    monkeypatch.setattr(HttpServer, "accept", lambda self: looks.append(1) or accept(self))

    def work(environ, start_response):
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    with serving_app(work) as port:
        for _ in range(10):
            assert ask(port, "GET", "/")[0] == 200
    assert 10 <= len(looks) <= 20


REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_others_are_answered_beside_many_requests_whose_answers_nobody_reads(port):
    with ExitStack() as stack:
        for _ in range(1100):
            greedy = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            greedy.sendall(200 * REQUEST)
        begin = time.monotonic()
        assert ask(port, "GET", "/health")[0] == 200
        assert time.monotonic() - begin < 15  # not when the 220,000 requests are worked off


def told(connection):
    """Return what a connection tells until it is closed."""
    found = b""
    while part := connection.recv(1 << 16):
        found += part
    return found


def test_of_requests_sent_together_the_first_is_answered(port):
    for sent in (REQUEST * 3, b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" + REQUEST):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as greedy:
            greedy.sendall(sent)
            answer = told(greedy)
        assert answer.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in answer


@pytest.mark.parametrize("after", [b"", b"\r\n"])
def test_a_connection_is_kept_for_one_request_after_the_other(port, after):
    """Some old clients end a body with CRLF."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as patient:
        for _ in range(3):
            patient.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" + after)
            assert b"Connection: close" not in patient.recv(1 << 16)


def test_beside_too_many_connections_each_has_one_answer():
    def work(environ, start_response):
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    with serving_app(work, connections=20) as port, ExitStack() as stack:
        for count in range(1, 18):  # the server's own two places count too
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            caller.sendall(REQUEST)
            assert (b"Connection: close" in caller.recv(1 << 16)) == (count == 17)


@pytest.mark.parametrize(
    ("flags", "key", "told"),
    [
        (["--host", "no-such-host.invalid"], "", "'no-such-host.invalid' to listen on is no address"),
        (["--allowed_origins", "a.example"], "", "'a.example' is no origin"),
        ([], "密钥", "the API key holds characters"),
    ],
)
def test_what_can_not_be_is_told_before_a_model_is_opened(flags, key, told, tmp_path, monkeypatch):
    monkeypatch.setenv("PANGU_API_KEY", key)
    command = ["-m", "serving_increment.flask.server", "--model", tmp_path / "none", "--port", 15077, *flags]
    status, _, errors = run(*command, cwd=ROOT)
    assert status == 2 and told in errors and errors.count("\n") == 1


def test_a_proxy_may_keep_or_remove_the_path_of_the_page(service):
    with serving(service, root_path="/pangu") as port:
        for path in ("/pangu/", "/"):
            status, _, text = ask(port, "GET", path)
            assert status == 200 and '<base href="/pangu/">' in text
            assert 'src="static/page.js"' in text and 'href="/' not in text.replace('<base href="/pangu/">', "")
            assert ask(port, "GET", f"{path}static/page.js")[0] == 200
            assert ask(port, "POST", f"{path}v1/completions", COMPLETION)[0] == 200
    with serving(service) as port:
        assert "<base" not in ask(port, "GET", "/")[2]
