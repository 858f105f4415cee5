"""The Gradio pages give out no file of the server, whatever is sent to Gradio's routes."""

import http.client
import json
import re
import socket
import time
from contextlib import ExitStack

import pytest

from tests.support.browser import needs_chromium, until
from tests.support.serving import ask
from tests.support.web_pages import ANSWER, PROMPT, click, paged, value, write
from web import chat_page, connections, guard, server, text_page
from web.engine import local_engine

PAGES = pytest.mark.parametrize("page", [text_page, chat_page], ids=["text", "chat"])
SECRET = "what only the server's user may read"
SESSION = "abcdefghijk"


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("home") / "secret.txt"
    path.write_text(SECRET)
    return str(path)


def file_of(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def forms(path):
    """Values of events that name a file, or make Gradio build a component that reads one."""
    file = file_of(path)
    parts = (
        {"type": "file", "file": file},
        {"type": "component", "component": "image", "value": path, "constructor_args": {"value": path}, "props": {}},
        {"type": "text", "text": file},
        file,
    )
    return [
        file,
        [file],
        [[file]],
        {"text": "a", "files": [file]},
        *([{"role": "user", "content": [part]}] for part in parts),
        *([{"role": "user", "content": part}] for part in parts),
        [{"role": "user", "content": "a", "metadata": {"title": file}}],
        [{"role": "user", "content": "a", "options": [{"value": "a", "icon": file}]}],
        file_of(f"file://{path}"),
        file_of("http://127.0.0.1:9/x") | {"url": "http://127.0.0.1:9/x"},
    ]


def followed(port, seconds=10):
    """Return what the queue tells until its stream ends."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={SESSION}")
    told = connection.getresponse().read().decode()
    connection.close()
    return told


def usual(component):
    """Return a value that a component may have."""
    return {"chatbot": [], "textbox": ""}.get(component["type"], component["props"].get("value"))


def events(port):
    """Yield the number and the usual values of each event of a page."""
    config = json.loads(ask(port, "GET", "/config")[2])
    components = {component["id"]: component for component in config["components"]}
    for event in config["dependencies"]:
        yield event["id"], [usual(components[place]) for place in event["inputs"]]


@PAGES
def test_no_event_takes_a_file(page, known, secret):
    with paged(page.build(local_engine(known))) as port:
        tried = 0
        for number, values in events(port):
            for place in range(len(values)):
                for form in forms(secret):
                    data = [*values[:place], form, *values[place + 1 :]]
                    body = {"data": data, "fn_index": number, "session_hash": SESSION}
                    for route, wanted in (("queue/join", 422), ("run/predict", 404)):
                        status, _, told = ask(port, "POST", f"/gradio_api/{route}", body)
                        assert status == wanted and SECRET not in told, (number, form)
                        tried += 1
            for extra in ({"event_data": file_of(secret)}, {"event_data": {"index": 0, "value": file_of(secret)}}):
                body = {"data": values, "fn_index": number, "session_hash": SESSION} | extra
                assert ask(port, "POST", "/gradio_api/queue/join", body)[0] == 422
        assert tried > 100


@PAGES
def test_gradio_itself_refuses_a_file_that_was_not_uploaded(page, known, secret, monkeypatch):
    """The second lock: what would happen if a value passed the guard."""

    class Anything:
        @staticmethod
        def model_validate_json(body):
            return Anything(body)

        def __init__(self, body):
            self.body, self.fn_index = body, json.loads(body)["fn_index"]

        def model_dump_json(self, **_):
            return self.body.decode()

    monkeypatch.setattr(guard, "_Event", Anything)
    monkeypatch.setattr(guard.Guard, "_fits", lambda *_: True)
    monkeypatch.setattr(guard, "READ", guard.re.compile(".*"))
    with paged(page.build(local_engine(known))) as port:
        refused = 0
        for number, values in events(port):
            for place, value in enumerate(values):
                form = [{"role": "user", "content": [{"type": "file", "file": file_of(secret)}]}]
                data = [*values[:place], form if value == [] else file_of(secret), *values[place + 1 :]]
                body = {"data": data, "fn_index": number, "session_hash": SESSION}
                if ask(port, "POST", "/gradio_api/queue/join", body)[0] == 200:
                    told = followed(port)
                    assert "/gradio_api/file=" not in told, told
                    refused += '"success":false' in told  # a gr.State is not read from the request at all
        assert refused > 3


@PAGES
def test_no_route_gives_or_takes_a_file(page, known, secret):
    with paged(page.build(local_engine(known))) as port:
        for path in (
            f"/gradio_api/file={secret}",
            f"/gradio_api/file/{secret}",
            f"//gradio_api/file={secret}",
            f"/gradio_api//file={secret}",
            f"/gradio_api/%66ile={secret}",
            f"/file={secret}",
            f"/gradio_api/proxy=http://127.0.0.1:{port}/",
            f"/gradio_api/stream/{SESSION}/1/1/playlist.m3u8",
            f"/custom_component/1/client/component/{secret}",
            f"/gradio_api/custom_component/1/client/component/{secret}",
            f"/static/../../../../../../../../../../{secret}",
            f"/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{secret}",
            f"/svelte/{secret}",
            "/gradio_api/info",
            "/gradio_api/vibe-code",
            "/gradio_api/upload_progress",
            "/gradio_api/queue/data",
            f"/gradio_api/queue/data?session_hash={SESSION}",
            "/gradio_api/run/predict",
            "/static/" + "a" * 5000,
            "/assets/" + "%e4%b8%ad" * 150,
            "/static/%00",
            "/monitoring",
        ):
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
                status, _, told = ask(port, method, path, None)
                assert 403 <= status <= 405 and SECRET not in told, (method, path)
        form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\na\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        for route in ("upload", "upload/", "process_recording", "run-history/connect", "call/predict", "api/predict"):
            assert ask(port, "POST", f"/gradio_api/{route}", form, kind)[0] == 404


def test_other_sites_do_not_reach_the_page(known):
    event = {"data": [""], "fn_index": 5, "session_hash": SESSION}
    with paged(text_page.build(local_engine(known))) as port:
        for headers in (
            {"Host": "evil.example"},
            {"X-Forwarded-Host": "evil.example"},
            {"X-Forwarded-Host": "localhost, \x7f"},
            {"X-Gradio-Server": "http://evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        ):
            for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/queue/join")):
                status, told, _ = ask(port, method, path, event, headers)
                assert status == 403 and "access-control-allow-origin" not in told
        assert ask(port, "POST", "/gradio_api/queue/join", event, {"Origin": f"http://127.0.0.1:{port}"})[0] == 200


def test_a_proxy_may_keep_or_remove_the_path_of_the_page(known):
    with paged(text_page.build(local_engine(known)), "/pangu") as port:
        for path in ("/pangu/", "/"):
            status, _, text = ask(port, "GET", path)
            assert status == 200 and f'"root":"http://127.0.0.1:{port}/pangu"' in text
            [script] = re.findall(r'<script type="module" crossorigin src="\./(assets/[^"]+)"', text)[:1]
            assert ask(port, "GET", path + script)[0] == 200
            assert ask(port, "GET", f"{path}config")[0] == 200
            assert ask(port, "GET", f"{path}gradio_api/file=/etc/passwd")[0] == 404


def test_the_state_of_abandoned_pages_is_dropped(known, monkeypatch):
    monkeypatch.setattr(server, "SESSIONS", 5)
    blocks = text_page.build(local_engine(known))
    with paged(blocks) as port:
        number = next(number for number, values in events(port) if values == ["中文"])
        for session in [*map(str, range(12)), "0"]:
            body = {"data": ["English"], "fn_index": number, "session_hash": session}
            assert ask(port, "POST", "/gradio_api/queue/join", body)[0] == 200
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
            assert '"success":true' in connection.getresponse().read().decode()
            connection.close()
        assert 1 <= len(blocks.state_holder.session_data) <= 5


def test_others_are_answered_beside_many_idle_connections(known):
    with paged(text_page.build(local_engine(known))) as port, ExitStack() as stack:
        for _ in range(1200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert ask(port, "GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("", 422),
        ("{", 422),
        ("[" * 100000, 422),
        ('{"data": [], "fn_index": 0, "session_hash": "\\ud800"}', 422),
        ('{"data": [], "fn_index": 0, "session_hash": "a", "batched": true}', 422),
        ('{"data": ["%s"], "fn_index": 0, "session_hash": "a"}' % ("a" * (5 << 20)), 413),
        ('{"data": [], "fn_index": 99999, "session_hash": "a"}', 422),
    ],
)
def test_events_that_can_not_be(known, body, wanted):
    with paged(text_page.build(local_engine(known))) as port:
        for route in ("queue/join", "cancel", "reset"):
            assert ask(port, "POST", f"/gradio_api/{route}", body)[0] == wanted
        assert ask(port, "GET", "/")[0] == 200


@PAGES
def test_a_value_of_another_type_does_not_reach_gradio(page, known, capfd):
    """Gradio would begin the event, and write a stack trace to the log."""
    wrong = {"textbox": 1, "slider": "1", "radio": True, "dropdown": [], "chatbot": "a", "state": "a"}
    blocks = page.build(local_engine(known))
    with paged(blocks) as port:
        for number, values in events(port):
            kinds = [component.get_block_name() for component in blocks.fns[number].inputs]
            changed = [
                [*values[:place], wrong.get(kind, [[]]), *values[place + 1 :]] for place, kind in enumerate(kinds)
            ]
            for data in [*changed, values + [None], values[1:] if values else [1]]:
                body = {"data": data, "fn_index": number, "session_hash": SESSION}
                assert ask(port, "POST", "/gradio_api/queue/join", body)[0] == 422, (number, data)
    assert "Traceback" not in capfd.readouterr().err


@PAGES
def test_a_value_that_a_component_does_not_have_does_not_reach_gradio(page, known, capfd):
    """A choice that does not exist, a number outside a slider, no value at all."""
    wrong = {"radio": ["none", None], "dropdown": ["none"], "slider": [-1, 1e9, None], "textbox": [None]}
    wrong |= {"dataset": [99, None]}
    blocks = page.build(local_engine(known))
    with paged(blocks) as port:
        tried = set()
        for number, values in events(port):
            kinds = [component.get_block_name() for component in blocks.fns[number].inputs]
            for place, kind in enumerate(kinds):
                for value in wrong.get(kind, []):
                    data = [*values[:place], value, *values[place + 1 :]]
                    body = {"data": data, "fn_index": number, "session_hash": SESSION}
                    assert ask(port, "POST", "/gradio_api/queue/join", body)[0] == 422, (number, data)
                    tried.add(kind)
        assert tried >= wrong.keys() - {"dataset"}
    assert "Traceback" not in capfd.readouterr().err


def said(text):
    return [{"role": "user", "content": text}]


def parts(text):
    return [{"type": "text", "text": text}]


@PAGES
def test_what_a_reader_could_send_leaves_no_trace(page, known, capfd, caplog):
    """Huge numbers, parts of a number, a text for the parts of a message, an event without its data."""
    odd = {"textbox": ["1" * 5000], "slider": [0.5, 2.5], "chatbot": [said("a"), said(parts("&#" + "1" * 5000 + ";"))]}
    blocks = page.build(local_engine(known))
    known.batch.runtime.allowed.release(10**6)
    with paged(blocks) as port:
        for number, values in events(port):
            kinds = [component.get_block_name() for component in blocks.fns[number].inputs]
            plain = {"textbox": "1", "chatbot": said(parts("a"))}
            usual = [plain.get(kind, value) for kind, value in zip(kinds, values, strict=True)]
            changed = [
                [*usual[:place], form, *usual[place + 1 :]]
                for place, kind in enumerate(kinds)
                for form in odd.get(kind, [])
            ]
            for data in [usual, *changed]:
                body = {"data": data, "fn_index": number, "session_hash": SESSION}
                status = ask(port, "POST", "/gradio_api/queue/join", body)[0]
                assert status in (200, 422)
                if status == 200:
                    assert '"success":true' in followed(port), (number, data)
    assert "Traceback" not in capfd.readouterr().err and not any(record.exc_info for record in caplog.records)


def test_of_requests_sent_together_the_first_is_answered(known):
    one = b"GET /theme.css HTTP/1.1\r\nHost: localhost\r\n\r\n"
    event = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    with paged(text_page.build(local_engine(known))) as port:
        for sent in ([one * 200], [event + one], [event[:-1], event[-1:] + one], [one, one * 200]):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as greedy:
                answer = b""
                for part in sent:
                    greedy.sendall(part)
                    time.sleep(0.2)
                while part := greedy.recv(1 << 16):
                    answer += part
            assert answer.count(b"HTTP/1.1 ") == 1 + (sent[0] == one) and answer.count(b"connection: close") == 1
        patient = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(3):
            patient.request("POST", "/gradio_api/queue/join", "{}")
            answer = patient.getresponse()
            assert answer.getheader("connection") is None and answer.read()
        patient.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "nothing after a request"],
)
def test_an_idle_connection_is_closed(known, monkeypatch, sent):
    """Uvicorn waits for ever for a request, also if a byte of its head comes from time to time."""
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.0)
    with paged(text_page.build(local_engine(known))) as port, socket.create_connection(("127.0.0.1", port)) as idle:
        idle.sendall(sent)
        idle.settimeout(0.3)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            try:
                if not idle.recv(1 << 20):
                    return
            except TimeoutError:
                if sent.endswith(b"localhost\r\n"):
                    idle.sendall(b"X")
            except ConnectionResetError:
                return
        raise AssertionError("the connection is still open")


def test_too_many_connections_cost_the_oldest_idle_one(known, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 20)
    with paged(text_page.build(local_engine(known))) as port, ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(50)]
        assert ask(port, "GET", "/")[0] == 200
        for connection in idle[:30]:
            connection.settimeout(5)
            assert connection.recv(1) == b""
        idle[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)


def test_a_key_that_is_given_twice_reads_as_it_was_checked(known, secret):
    """Two JSON parsers could take different values; so what was checked is passed on."""
    body = '{"data": [%s], "data": [""], "fn_index": %d, "session_hash": "%s"}'
    with paged(text_page.build(local_engine(known))) as port:
        number = next(number for number, values in events(port) if len(values) == 1)
        ask(port, "POST", "/gradio_api/queue/join", body % (json.dumps(file_of(secret)), number, SESSION))
        time.sleep(0.2)
        assert "/gradio_api/file=" not in followed(port)


@needs_chromium
def test_a_reader_behind_a_proxy(known, desktop):
    known.batch.runtime.allowed.release(100)
    with paged(text_page.build(local_engine(known)), "/pangu") as port:
        desktop.get(f"http://127.0.0.1:{port}/pangu/")
        until(desktop, lambda: desktop.find_elements("id", "send"))
        write(desktop, "text", PROMPT)
        click(desktop, "send")
        until(desktop, lambda: value(desktop, "text") == PROMPT + ANSWER)
