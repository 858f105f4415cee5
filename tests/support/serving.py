"""The web server in this process over a toy model, on a real port; and MindSpore Serving by its scripts."""

import contextlib
import http.client
import json
import os
import subprocess
import threading
import time

import numpy as np

from serving_increment.flask.app import AppSettings, create_app
from serving_increment.http_server import CONNECTIONS, HttpServer
from src.serving.listening import bound
from src.serving.service import TextService
from src.tokenization import load_tokenizer
from tests.support.programs import ROOT

ROWS = 4


def toy_service(runtime, vocabulary, waiting_limit=64, time_limit=60.0, kind="jieba"):
    """Make a service over a toy runtime. An answer ends before its limit only if the logits choose the end token."""

    def score(tokens, start):
        return [runtime.log_probs(tokens[:place])[tokens[place]] for place in range(start, len(tokens))]

    def logits(tokens, start):
        for place in range(start, len(tokens)):
            yield runtime.log_probs(tokens[:place])[None].astype(np.float32)

    tokenizer = load_tokenizer(kind, vocabulary)
    return TextService(runtime, score, tokenizer, 9, ROWS, waiting_limit, time_limit, logits)


def serving(backend, root_path="", **settings):
    """Run the web server of a backend in a thread, and yield its port."""
    return serving_app(create_app(backend, AppSettings(**settings)), root_path)


@contextlib.contextmanager
def serving_app(app, root_path="", connections=CONNECTIONS):
    """Run a WSGI application in a thread, and yield its port."""
    server = HttpServer(app, bound("127.0.0.1", 0, ""), threads=32, connections=connections, root_path=root_path)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.task_dispatcher.shutdown()  # its threads write to a pipe, whose number is another file's after `close`
        server.close()
        thread.join(1)  # with a limit: a client may keep its connection


def ask(port, method, path, body=None, headers=None):
    """Send a request, and return status, headers and text. A body that is not a string is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if body is not None and not isinstance(body, (str, bytes)):
        body = json.dumps(body)
    headers = {"Content-Type": "application/json"} | (headers or {})
    connection.request(method, path, body.encode() if isinstance(body, str) else body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, dict(response.getheaders()), text


def script(name, environment, *arguments):
    """Run a script of serving_increment."""
    return subprocess.run(
        ["bash", ROOT / f"serving_increment/{name}.sh", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def marked(environment):
    """Return the command lines of all processes that a start script has started, by process id."""
    mark = f"PANGU_RUN={environment['PANGU_RUN']}".encode()
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    with open(f"/proc/{process}/cmdline") as command:
                        found[int(process)] = command.read().replace("\0", " ")
        except OSError:
            continue
    return {process: command for process, command in found.items() if command}


def eventually(condition, seconds=30):
    """Wait until a condition is true, and return how many seconds it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.2)
    return time.monotonic() - begin


def predicted(instances, port, method="predict"):
    """Call Serving's REST interface, and return status and body."""
    status, _, text = ask(port, "POST", f"/model/pangu:{method}", {"instances": instances})
    return status, json.loads(text)
