"""The web server in this process, over a toy model, for real clients on a real port."""

import contextlib
import http.client
import json
import threading

import waitress

from serving_increment.flask.app import AppSettings, create_app
from src.service import TextService
from src.tokenization import load_tokenizer

ROWS = 4


def toy_service(runtime, vocabulary, waiting_limit=64, time_limit=60.0):
    """A service that never ends an answer by itself, unless the runtime's logits say so."""
    def score(tokens, start):
        return [runtime.log_probs(tokens[:place])[tokens[place]] for place in range(start, len(tokens))]

    return TextService(runtime, score, load_tokenizer("jieba", vocabulary), 9, ROWS, waiting_limit, time_limit)


def serving(backend, **settings):
    """The port of a server in a thread."""
    return serving_app(create_app(backend, AppSettings(**settings)))


@contextlib.contextmanager
def serving_app(app):
    """The same of an application."""
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=32, channel_request_lookahead=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.close()
        thread.join(1)  # not for ever: a client may keep its connection


def ask(port, method, path, body=None, headers=None):
    """(status, headers, text) of a request; a body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    if body is not None and not isinstance(body, (str, bytes)):
        body = json.dumps(body)
    headers = {"Content-Type": "application/json"} | (headers or {})
    connection.request(method, path, body.encode() if isinstance(body, str) else body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, dict(response.getheaders()), text
