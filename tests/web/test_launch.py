"""The command lines of the pages: errors in one line, and pages that answer."""

import http.client
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.vocabulary import vocabulary_md5
from src.inference.manifest import Manifest
from src.inference.mindir.export import export_model
from src.serving.open_model import open_model
from src.serving.openai_client import OnlineModels
from tests.support.browser import chromium, element, needs_chromium, until
from tests.support.programs import ROOT, finish, random_ids, random_model, run, start, train_flags, write_mindrecord
from web.launch import PageConfig, open_page

TEXT, CHAT = "web/run_gradio_web.py", "web/run_pangu_bot.py"


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--prot=1"], "no option --prot; did you mean '--port'?"),
        (["--port=0"], "--port is 0; it must lie in 1 to 65535"),
        (["--rows=0"], "--rows is 0"),
        (["--time_limit=0"], "--time_limit is 0"),
        (["--api_base=http://h/v1", "--tokenizer=x"], "--tokenizer is for a model in this process"),
        (["--api_key=x"], "its address, --api_base, is missing"),
        ([], "bash scripts/run_quickstart.sh makes it"),
    ],
)
def test_flags_that_can_not_be(flags, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: parse(PageConfig, TEXT, flags))
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and told in line


def test_what_is_not_there_is_one_line(tmp_path):
    """The programs report a taken port, a server that does not answer, and a folder without a model."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = [
            (TEXT, ["--model", tmp_path, "--port", port], f"127.0.0.1:{port} can't be listened on"),
            (
                CHAT,
                ["--api_base", f"http://127.0.0.1:{free_port()}/v1", "--port", free_port()],
                "is the server running there?",
            ),
            (CHAT, ["--api_base", "localhost:5000", "--port", free_port()], "is no address"),
            (CHAT, ["--model", tmp_path, "--port", free_port()], "should hold one .ckpt"),
        ]
        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(lambda case: run(case[0], *case[1], cwd=ROOT), cases))
    for (_, flags, told), (status, _, errors) in zip(cases, ends, strict=True):
        assert status == 2 and errors.count("\n") == 1 and told in errors, (flags, errors)


def test_a_model_that_a_server_does_not_have(monkeypatch):
    monkeypatch.setattr(OnlineModels, "model_list", lambda self: ["pangu-alpha", "other"])
    flags = ["--api_base=http://127.0.0.1:1/v1", "--model=pangu-alfa", f"--port={free_port()}"]
    monkeypatch.setattr("sys.argv", [TEXT, *flags])
    with pytest.raises(InputError, match="no model 'pangu-alfa'; did you mean 'pangu-alpha'"):
        open_page("text", TEXT)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_vocab):
    folder = tmp_path_factory.mktemp("run")
    write_mindrecord(folder / "train.mindrecord", random_ids(8))
    flags = train_flags(folder / "train.mindrecord", folder / "run", steps=2)
    status, _, errors = run("train.py", *flags, "--model.vocab_size=400", "--data.tokenizer_path", tiny_vocab, cwd=ROOT)
    assert status == 0, errors
    return folder / "run"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_vocab):
    model, _ = random_model(vocab_size=400)
    folder = tmp_path_factory.mktemp("exported") / "device0"
    export_model(model, Manifest(model.config, "jieba", vocabulary_md5(tiny_vocab), 9, 2, (16, 32), ()), folder)
    return folder


@pytest.mark.slow
def test_an_exported_model_wants_its_vocabulary(exported):
    with pytest.raises(InputError, match="--tokenizer is not given"):
        open_model(exported)


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("program", "box"), [(TEXT, "text"), (CHAT, "message")])
@pytest.mark.parametrize("kind", ["run_folder", "exported"])
def test_a_model_of_this_machine_answers_and_ctrl_c_ends_it(program, box, kind, request, tiny_vocab, tmp_path):
    port = free_port()
    flags = ["--model", request.getfixturevalue(kind), *(["--tokenizer", tiny_vocab] if kind == "exported" else [])]
    process = start(program, *flags, "--port", port, cwd=ROOT, preexec_fn=os.setpgrp)
    try:
        told = [process.stdout.readline() for _ in range(2)]
        assert str(flags[1]) in told[0] and told[1] == f"the page: http://127.0.0.1:{port}\n", finish(process)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/")
                assert connection.getresponse().status == 200
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        with chromium(tmp_path, phone=False) as browser:
            browser.get(f"http://127.0.0.1:{port}/")
            until(browser, lambda: browser.find_elements("css selector", f"#{box} textarea"))
            browser.find_element("css selector", f"#{box} textarea").send_keys("明月")
            element(browser, "send").click()
            until(browser, lambda: "种子" in element(browser, "status").text)
            process.send_signal(signal.SIGINT)
            status, _, errors = finish(process, 30)
        assert errors == "" and status in (130, -signal.SIGTERM)  # MindSpore turns SIGINT into SIGTERM
    finally:
        process.kill()
