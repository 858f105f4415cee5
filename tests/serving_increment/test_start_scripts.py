"""The start scripts: two starts at once, another server at our port, and a clone whose path has a space."""

import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from src.common.vocabulary import vocabulary_md5
from src.inference.manifest import Manifest
from src.inference.mindir.export import export_model
from tests.support.programs import ROOT, random_model
from tests.support.serving import marked, predicted

HERE = ROOT / "serving_increment"


def shell(commands, run, **environment):
    """Start bash with the functions of the start scripts."""
    return subprocess.Popen(
        ["bash", "-c", f'. "{HERE}/common.sh"\n{commands}'],
        env=os.environ | {"PANGU_RUN": str(run)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.fixture
def other_server():
    """A server of somebody else that says that it is well."""

    class Well(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Well)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def test_of_starts_at_once_one_wins(tmp_path):
    ends = [ended(process) for process in [shell("begin", tmp_path / "run") for _ in range(8)]]
    assert sorted(status for status, _, _ in ends) == [0] + [2] * 7
    assert all("stop_pangu.sh" in errors for status, _, errors in ends if status)


def test_a_server_of_somebody_else_does_not_count(tmp_path, other_server):
    """Ours ends because the port is taken, while the other one answers there."""
    ours = "sleep 2; echo 'error: the port is taken'; exit 2"
    (tmp_path / "own.log").write_text("the page: of an earlier start\n")
    commands = f"""begin
        in_background "$PANGU_RUN" own.log sh -c "{ours}"
        watch $! own.log
        wait_for "the page: " own.log http://127.0.0.1:{other_server}/health"""
    status, _, errors = ended(shell(commands, tmp_path))
    assert (status, errors) == (2, "error: the port is taken\n")
    assert not (tmp_path / "pangu.run").exists()


def test_our_own_server_counts(tmp_path, other_server):
    commands = f"""begin
        in_background "$PANGU_RUN" own.log sh -c "sleep 1; echo 'the page: here'; sleep 60"
        watch $! own.log
        wait_for "the page: " own.log http://127.0.0.1:{other_server}/health
        stop"""
    assert ended(shell(commands, tmp_path, http_proxy="http://127.0.0.1:1"))[0] == 0
    assert marked({"PANGU_RUN": str(tmp_path)}) == {}


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("fe80::1", "[fe80::1]"),
        ("10.0.0.7",) * 2,
    ],
)
def test_where_this_machine_finds_its_servers(host, address, tmp_path):
    assert ended(shell("reach", tmp_path, PANGU_HOST=host))[1] == f"{address}\n"


@pytest.mark.slow
def test_a_clone_whose_path_has_a_space(tmp_path, tiny_vocab, serving_python):
    clone, run = tmp_path / "a clone", tmp_path / "its run"
    clone.mkdir()
    for name in ("src", "scripts", "serving_increment", "configs"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, clone)
    for name in (".venv", ".venv-serving"):
        (clone / name).symlink_to((ROOT / name).resolve())
    model = random_model(seed=3, seq_length=32, vocab_size=200)[0]
    export_model(model, Manifest(model.config, "jieba", vocabulary_md5(tiny_vocab), 9, 2, (16, 32), ()), tmp_path / "m")
    places = {"PANGU_RUN": str(run), "PANGU_MODEL": str(tmp_path / "m"), "PANGU_TOKENIZER": str(tiny_vocab)}
    environment = os.environ | places | {"GRPC_PORT": "15590", "REST_PORT": "11590", "PAGE_PORT": "15091"}
    command = ["bash", clone / "serving_increment/start_pangu_standalone.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    try:
        assert done.returncode == 0, done.stderr
        assert re.search("the page: http://127.0.0.1:15091", done.stdout)
        status, answer = predicted([{"input_sentence": "明月"}], 11590)
        assert status == 200, json.dumps(answer)
    finally:
        stop = ["bash", clone / "serving_increment/stop_pangu.sh"]
        subprocess.run(stop, env=environment, capture_output=True, timeout=120)
    assert marked(environment) == {}
