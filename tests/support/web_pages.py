"""A page of `web` in this process, on a real port, and a server of the API in another one."""

import contextlib
import re
import socket
import threading
import time

from tests.support.programs import ROOT, start
from tests.support.serving import toy_service
from tests.support.toy_runtime import ToyRuntime
from web.server import PageServer


class EndlessRuntime(ToyRuntime):
    """Samples of it differ, none ends by itself, and there is time to do something in the middle of one."""

    def __init__(self):
        super().__init__(160, spread=1.0)
        self.table[..., 9] = -1e9

    def decode(self, ids, positions):
        time.sleep(0.05)
        return super().decode(ids, positions)


@contextlib.contextmanager
def paged(blocks):
    """The port of a page in a thread."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        server = PageServer(blocks)
        thread = threading.Thread(target=server.run, args=[[place]], daemon=True)
        thread.start()
        try:
            while not server.started:
                thread.join(0.02)
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def api_process(vocabulary, api_key=""):
    """(process, address) of the Flask server in a process of its own, over a toy model."""
    process = start("-m", "tests.support.web_pages", vocabulary, api_key, cwd=ROOT)
    try:
        port = re.search(r"port (\d+)", process.stdout.readline())[1]
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    import sys

    import waitress

    from serving_increment.flask.app import AppSettings, create_app

    app = create_app(toy_service(EndlessRuntime(), sys.argv[1]), AppSettings(api_key=sys.argv[2]))
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=8, channel_request_lookahead=1)
    print(f"port {server.effective_port}", flush=True)
    server.run()
