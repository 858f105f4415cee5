"""A Gradio page in this process on a real port, what a reader does on it, and an API server in another process."""

import contextlib
import re
import socket
import threading
import time

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from src.serving.listening import bound
from src.serving.visitors import Visitors
from tests.support.browser import asked_hosts, element, until
from tests.support.programs import ROOT, start
from tests.support.serving import toy_service
from tests.support.toy_runtime import ToyRuntime
from web.server import PageServer

PROMPT, ANSWER = "明月何时照我还", "江春明南月岸风绿又江春明南月"
NAME = "a model"


class EndlessRuntime(ToyRuntime):
    """Generates different samples that never end, slowly enough to act in the middle of one.

    From the token `slow_from` on it takes half a second for each.
    """

    slow_from = 40

    def __init__(self):
        super().__init__(160, spread=1.0)
        self.table[..., 9] = -1e9

    def decode(self, ids, positions, rows=None):
        time.sleep(0.05 if positions.max() < self.slow_from else 0.5)
        return super().decode(ids, positions, rows)


@contextlib.contextmanager
def paged(blocks, root_path=""):
    """Run a page in a thread, and yield its port."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        server = PageServer(blocks, Visitors(), root_path)
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
    """Run the Flask server over a toy model in another process, and yield process and address."""
    process = start("-m", "tests.support.web_pages", vocabulary, api_key, cwd=ROOT)
    try:
        port = re.search(r"port (\d+)", process.stdout.readline())[1]
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def visit(browser, port, language):
    """Open a page in a language."""
    browser.get(f"http://127.0.0.1:{port}/")
    until(browser, lambda: browser.find_elements(By.ID, "send"))
    choose(browser, language)


def choose(browser, language):
    [label] = [label for label in browser.find_elements(By.CSS_SELECTOR, "#language label") if label.text == language]
    label.click()
    until(browser, lambda: element(browser, "retry").text == {"中文": "重试", "English": "Retry"}[language])


def box(browser, identity):
    return browser.find_element(By.CSS_SELECTOR, f"#{identity} :is(textarea, input)")


def value(browser, identity):
    return box(browser, identity).get_attribute("value")


def write(browser, identity, text):
    """Replace the text of a box, as a reader does."""
    box(browser, identity).send_keys(Keys.CONTROL, "a")
    box(browser, identity).send_keys(Keys.BACKSPACE, text)


def click(browser, identity):
    until(browser, lambda: element(browser, identity).is_displayed())
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element(browser, identity))
    element(browser, identity).click()


def status(browser):
    return element(browser, "status").text


def said(browser):
    """Return the messages of both sides, in order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#chat .message-content')].map(message => message.innerText.trim())"
    )


def clipboard(browser):
    return browser.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")


def grown(browser, service, read, whole):
    """Return every text that is shown of an answer, while the model may generate one token at a time."""
    seen = [""]
    deadline = time.monotonic() + 60
    while seen[-1] != whole and time.monotonic() < deadline:  # some tokens add no text
        service.batch.runtime.allowed.release()
        time.sleep(0.15)
        text = read()
        seen += [text] * (text != seen[-1])
    assert seen[-1] == whole
    service.batch.runtime.allowed.release()
    return seen[1:]


def assert_ends_soon(service):
    """Check that generation ends within some tokens, long before the end of the answer."""
    for _ in range(5):
        service.batch.runtime.allowed.release()
        time.sleep(0.2)
        if not service.batch.busy_rows:
            return
    raise AssertionError("the answer goes on")


def assert_nothing_from_elsewhere(browser, port):
    assert asked_hosts(browser) == {f"127.0.0.1:{port}"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


if __name__ == "__main__":
    import sys

    from serving_increment.flask.app import AppSettings, create_app
    from serving_increment.http_server import HttpServer

    app = create_app(toy_service(EndlessRuntime(), sys.argv[1]), AppSettings(api_key=sys.argv[2]))
    server = HttpServer(app, bound("127.0.0.1", 0, ""), threads=8)
    print(f"port {server.effective_port}", flush=True)
    server.run()
