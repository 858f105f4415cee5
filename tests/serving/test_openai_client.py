"""The client of OpenAI-compatible servers, with the project's own server and with servers that fail."""

import http.server
import json
import re
import socket
import threading
import time

import pytest

import pangu_inference_online
from src.common.errors import BackendError, BusyError, InputError, TimeLimitError, TooLongError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.sampling import answer_numbers
from src.serving.backends import Answer
from src.serving.chat import NEXT_QUESTION, Turn, dialogue
from src.serving.openai_client import KeyRefusedError, OnlineModels, UnknownModelError
from tests.support.programs import ROOT, run
from tests.support.serving import serving, toy_service
from tests.support.toy_runtime import PacedRuntime, ToyRuntime

MODEL, PROMPT = "pangu-alpha", "明月何时照我还"
SAMPLED = {"method": "sample", "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}


@pytest.fixture(scope="module")
def service(tiny_vocab):
    made = toy_service(PacedRuntime(160, spread=4.0), tiny_vocab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def base(service):
    with serving(service, api_key="key") as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def online(base):
    return OnlineModels(base, "key")


@pytest.fixture(scope="module")
def alone(service):
    """Return a function that gives the answer of the generation loop itself."""

    def answer(prompt, **settings):
        config = GenerationConfig(max_new_tokens=12, **settings)
        generator = TextGenerator(ToyRuntime(160, spread=4.0), service.tokenizer, config, 0)
        *_, [[answer]] = generator.completions([prompt], answer_numbers([service.tokenizer.encode(prompt)]))
        return answer.text

    return answer


@pytest.fixture
def sampled():
    """Settings whose answers depend on the server's random numbers."""
    return SAMPLED


@pytest.mark.parametrize("settings", [{}, "sampled", {"stop": ["月"]}])
def test_a_text_is_what_the_generation_loop_writes(online, alone, sampled, settings):
    settings = sampled if settings == "sampled" else settings
    steps = list(online.write(MODEL, PROMPT, GenerationConfig(max_new_tokens=12, **settings)))
    assert steps[-1].text == alone(PROMPT, **settings)
    assert steps[-1].finish_reason in ("stop", "length")
    assert len(steps) > 2 or settings.get("stop")
    assert all(later.text.startswith(before.text) for before, later in zip(steps, steps[1:], strict=False))


def test_a_chat_is_what_the_generation_loop_writes(online, alone, sampled):
    turns = [Turn("system", "春天"), Turn("user", "明月"), Turn("assistant", "清风"), Turn("user", "何时")]
    *_, answer = online.reply(MODEL, turns, GenerationConfig(max_new_tokens=12, **sampled))
    assert answer.text == alone(dialogue(turns), stop=[NEXT_QUESTION], **sampled)


def test_models(online):
    assert online.model_list() == [MODEL]
    assert online.model_info(MODEL)["id"] == MODEL
    with pytest.raises(UnknownModelError, match=f"no model 'pangu-alfa'; did you mean '{MODEL}'"):
        online.model_info("pangu-alfa")


def test_requests_to_this_machine_go_to_no_proxy(base, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert OnlineModels(base, "key").model_list() == [MODEL]


@pytest.mark.parametrize(
    ("key", "model", "prompt", "kind", "told"),
    [
        ("wrong", MODEL, PROMPT, KeyRefusedError, "--api_key"),
        ("", MODEL, PROMPT, KeyRefusedError, "wrong or missing API key"),
        ("key", "other", PROMPT, UnknownModelError, "'other' is not served here"),
        ("key", MODEL, PROMPT * 30, TooLongError, "at most 63"),
        ("key", MODEL, "", InputError, "length 0"),
    ],
)
def test_what_the_server_refuses(base, key, model, prompt, kind, told):
    with pytest.raises(kind, match=told):
        list(OnlineModels(base, key).write(model, prompt, GenerationConfig(max_new_tokens=4)))


def test_beams_and_samples_are_not_asked_for(online):
    for settings in ({"method": "beam"}, {"num_samples": 2}):
        with pytest.raises(InputError, match="can't be asked of a server"):
            list(online.write(MODEL, PROMPT, GenerationConfig(**settings)))


def test_an_address_that_is_none():
    for address in ("", "127.0.0.1:5000/v1", "ftp://host/v1", "http://[::1/v1"):
        with pytest.raises(InputError, match="is no address"):
            OnlineModels(address)


def test_a_key_that_is_none():
    for key in ("钥匙", "a\nb"):
        with pytest.raises(InputError, match="holds characters that no key has"):
            OnlineModels("http://127.0.0.1:1/v1", key)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(BackendError, match="does not answer"):
            OnlineModels(f"http://127.0.0.1:{free.getsockname()[1]}/v1").model_list()


def event(content):
    return b"data: " + json.dumps(content).encode() + b"\n\n"


PIECE = event(
    {
        "id": "1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": "春", "finish_reason": None, "logprobs": None}],
    }
)


class Foreign(http.server.BaseHTTPRequestHandler):
    """Answers every request as the test has prepared."""

    protocol_version = "HTTP/1.1"
    status, kind, body, length, pause = 200, "application/json", b"", None, 0.0
    asked = None

    def do_GET(self):
        size = int(self.headers.get("Content-Length", 0))
        type(self).asked = json.loads(self.rfile.read(size)) if size else None
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        if self.length != -1:  # else the connection ends the answer
            self.send_header("Content-Length", str(self.length or len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)
        self.wfile.flush()
        time.sleep(self.pause)
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def foreign():
    """A function that starts a server with a prepared answer, and returns its handler and a client."""
    servers = []

    def answering(**answer):
        handler = type("Prepared", (Foreign,), answer)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return handler, OnlineModels(f"http://127.0.0.1:{server.server_port}/v1", time_limit=1.0)

    yield answering
    for server in servers:
        server.shutdown()
        server.server_close()


def failure(message, **more):
    return json.dumps({"error": {"message": message, "type": "t", **more}}).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (dict(status=500, body=failure("no room on the device")), BackendError, "no room on the device"),
        (dict(status=503, kind="text/html", body=b"<html>down</html>"), BackendError, "503|down"),
        (dict(status=429, body=failure("slow down")), BusyError, "slow down"),
        (dict(status=403, body=failure("not for you")), KeyRefusedError, "not for you"),
        (dict(status=400, body=failure("This model's maximum context length is 4096 tokens")), TooLongError, "4096"),
        (dict(status=400, body=failure("unknown field top_k")), InputError, "unknown field top_k"),
        (dict(status=404, kind="text/html", body=b"<html>not here</html>"), InputError, "ends in /v1"),
        (dict(kind="text/html", body=b"<html>a page</html>"), InputError, "OpenAI's protocol"),
        (dict(kind="text/event-stream", body=b"data: {\n\n"), InputError, "OpenAI's protocol"),
        (dict(kind="text/event-stream", body=event({"other": 1})), InputError, "OpenAI's protocol"),
        (dict(kind="text/event-stream", body=PIECE, length=-1), BackendError, "broke off"),
        (dict(kind="text/event-stream", body=b"data: [DONE]\n\n"), BackendError, "broke off"),
        (dict(kind="text/event-stream", body=PIECE, length=10000), BackendError, "127.0.0.1"),
        (
            dict(kind="text/event-stream", body=PIECE + event({"error": {"message": "ended", "code": 504}})),
            TimeLimitError,
            "ended",
        ),
        (dict(kind="text/event-stream", body=PIECE + event({"error": {"message": "fell"}})), BackendError, "fell"),
        (dict(kind="text/event-stream", body=PIECE, length=10000, pause=2.5), TimeLimitError, "within 1 seconds"),
    ],
)
def test_what_other_servers_do(foreign, answer, kind, told):
    _, online = foreign(**answer)
    with pytest.raises(kind, match=told):
        list(online.write("m", PROMPT, GenerationConfig()))


def chat_event(**choice):
    return event(
        {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": None} | choice],
        }
    )


def test_a_stream_without_a_reason(foreign):
    """The transfer is complete, so the answer is, even if the server tells no reason."""
    for end in (b"", b"data: [DONE]\n\n"):
        _, online = foreign(kind="text/event-stream", body=PIECE + end)
        assert list(online.write("m", PROMPT, GenerationConfig()))[-1] == Answer("春", "stop")


def test_a_delta_that_is_null(foreign):
    body = chat_event(delta={"content": "春"}) + chat_event(delta=None) + chat_event(delta=None, finish_reason="length")
    _, online = foreign(kind="text/event-stream", body=body)
    assert list(online.reply("m", [Turn("user", PROMPT)], GenerationConfig()))[-1] == Answer("春", "length")


def test_a_server_that_refuses_max_tokens(foreign):
    told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def do_post(self):
        size = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(size))
        is_old = "max_tokens" in asked
        type(self).asked.append(asked)
        body = failure(told) if is_old else chat_event(delta={"content": "春"}, finish_reason="stop")
        self.send_response(400 if is_old else 200)
        self.send_header("Content-Type", "application/json" if is_old else "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    handler, online = foreign(do_POST=do_post, asked=[])
    assert list(online.reply("m", [Turn("user", PROMPT)], GenerationConfig()))[-1] == Answer("春", "stop")
    assert [asked.get("max_completion_tokens") for asked in handler.asked] == [None, 64]
    assert "max_tokens" not in handler.asked[1]


def test_other_servers_are_asked_only_what_is_set(foreign):
    whole = PIECE.replace(b"null", b'"stop"', 1) + b"data: [DONE]\n\n"
    handler, online = foreign(kind="text/event-stream", body=whole)
    assert list(online.write("m", PROMPT, GenerationConfig())) == [Answer("春", "stop")]
    assert handler.asked == {
        "model": "m",
        "prompt": PROMPT,
        "stream": True,
        "max_tokens": 64,
        "temperature": 0.0,
        "seed": 0,
    }
    list(online.write("m", PROMPT, GenerationConfig(**SAMPLED, presence_penalty=0.5, stop=["\n"])))
    assert handler.asked == {
        "model": "m",
        "prompt": PROMPT,
        "stream": True,
        "max_tokens": 64,
        "temperature": 0.7,
        "seed": 3,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "stop": ["\n"],
    }


def test_a_server_that_tells_of_a_model_only_in_its_list(foreign):
    def do_get(self):
        is_list = self.path.endswith("/models")
        listed = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 64}]}
        body = json.dumps(listed if is_list else {"detail": "Not Found"}).encode()
        self.send_response(200 if is_list else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    _, online = foreign(do_GET=do_get)
    assert online.model_info("m")["max_model_len"] == 64
    with pytest.raises(UnknownModelError, match="no model 'n'; it has m"):
        online.model_info("n")


def test_model_lists_of_other_kinds(foreign):
    for answer in (
        dict(kind="text/html", body=b"<html>a page</html>"),
        dict(body=b"[]"),
        dict(body=b'{"data": 3}'),
        dict(status=404, body=failure("no such address")),
    ):
        with pytest.raises(InputError, match="OpenAI's protocol"):
            foreign(**answer)[1].model_list()


def test_the_command_line(base, alone, monkeypatch, capsys):
    def told(*flags):
        monkeypatch.setattr("sys.argv", ["pangu_inference_online.py", "--api_base", base, "--api_key", "key", *flags])
        pangu_inference_online.main()
        return capsys.readouterr().out

    assert told() == f"{MODEL}\n"
    assert json.loads(told("--model", MODEL))["id"] == MODEL
    asked = ("--prompt", PROMPT, "--max_tokens", "12", "--temperature", "0")
    assert told(*asked) == alone(PROMPT) + "\n"
    turns = [Turn("user", PROMPT)]
    assert told(*asked, "--chat") == alone(dialogue(turns), stop=[NEXT_QUESTION]) + "\n"


def test_the_program(base):
    status, _, errors = run("pangu_inference_online.py", "--api_base", base, cwd=ROOT)
    assert status == 2 and re.fullmatch(r"error: .*API key.*\n", errors)
