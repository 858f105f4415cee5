"""The Gradio pages send requests to no other host, except an OpenAI-compatible server, which may fail."""

import socket
import time

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from serving_increment.flask.app import AppSettings, create_app
from src.serving.backends import Answer
from tests.support.browser import element, needs_chromium, until
from tests.support.serving import ask, serving_app
from tests.support.web_pages import NAME, PROMPT, api_process, click, paged, said, status, value, visit, write
from web import chat_page, text_page
from web.engine import Engine, local_engine, online_engine

pytestmark = needs_chromium
real_info, real_connect = socket.getaddrinfo, socket.socket.connect


def test_the_page_itself_asks_nothing_of_others(known, monkeypatch):
    asked = []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **settings: asked.append(host) or real_info(host, *more, **settings)
    )
    monkeypatch.setattr(
        socket.socket, "connect", lambda place, address: asked.append(address[0]) or real_connect(place, address)
    )
    for page in (text_page, chat_page):
        with paged(page.build(local_engine(known))) as port:
            status, _, text = ask(port, "GET", "/")
    time.sleep(0.5)
    assert status == 200 and "gradio" in text and set(asked) == {"127.0.0.1"}


class Painter:
    """A backend that answers with a picture from another host."""

    def __init__(self, address):
        self.address = address

    def model_list(self):
        return [NAME]

    def reply(self, model, turns, config):
        yield Answer(f"**so** ![picture]({self.address})", "stop")


def test_pictures_from_elsewhere_are_not_fetched(desktop):
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(1)
        painter = Painter(f"http://127.0.0.1:{elsewhere.getsockname()[1]}/picture.png")
        engine = Engine(painter, NAME, longest=64, writes_markdown=True)
        with paged(chat_page.build(engine)) as port:
            visit(desktop, port, "English")
            write(desktop, "message", PROMPT + Keys.ENTER)
            until(desktop, lambda: len(desktop.find_elements(By.CSS_SELECTOR, "#chat .message-content img")) == 1)
            with pytest.raises(TimeoutError):
                elsewhere.accept()


def test_a_server_in_another_process(tiny_vocab, desktop):
    with api_process(tiny_vocab, "key") as (process, address):
        engine = online_engine(address, "key", "", 30.0)
        with paged(text_page.build(engine)) as port, paged(chat_page.build(engine)) as chat_port:
            visit(desktop, port, "English")
            assert value(desktop, "model") == "pangu-alpha"
            write(desktop, "length", "30" + Keys.TAB)
            write(desktop, "text", "明月")
            click(desktop, "send")
            seen = set()
            until(desktop, lambda: seen.add(value(desktop, "text")) or "seed" in status(desktop))
            assert len(seen) > 2  # what was written, some of the answer, and all of it
            write(desktop, "text", PROMPT * 30)
            click(desktop, "send")
            until(desktop, lambda: "The text is too long" in status(desktop))

            visit(desktop, chat_port, "English")
            write(desktop, "message", PROMPT + Keys.ENTER)
            until(desktop, lambda: len(said(desktop)) == 2 and len(said(desktop)[1]) > 3)
            process.kill()
            until(desktop, lambda: "does not answer or broke off" in status(desktop))
            assert len(said(desktop)[1]) > 3 and element(desktop, "send").is_displayed()
            click(desktop, "retry")
            until(desktop, lambda: "is the server running there?" in status(desktop))
            desktop.refresh()
            until(desktop, lambda: "is the server running there?" in status(desktop))


def test_a_server_with_another_key_and_another_model_than_at_first(endless, desktop):
    settings = AppSettings(api_key="key", model_name="first")
    app = create_app(endless, settings)
    with serving_app(app) as api_port:
        blocks = chat_page.build(online_engine(f"http://127.0.0.1:{api_port}/v1", "key", "", 30.0))
        with paged(blocks) as port:
            visit(desktop, port, "English")
            settings.api_key = "another"
            write(desktop, "message", PROMPT + Keys.ENTER)
            until(desktop, lambda: "The API key is wrong" in status(desktop) and said(desktop) == [PROMPT])
            desktop.refresh()
            until(desktop, lambda: "The API key is wrong" in status(desktop))
            settings.api_key, app.config["MODEL_NAME"] = "key", "second"
            write(desktop, "message", PROMPT + Keys.ENTER)
            until(desktop, lambda: "doesn't have this model" in status(desktop))
            desktop.refresh()
            until(desktop, lambda: desktop.find_elements(By.ID, "model") and value(desktop, "model") == "second")
            write(desktop, "message", PROMPT + Keys.ENTER)
            until(desktop, lambda: len(said(desktop)) == 2 and len(said(desktop)[1]) > 3)
            click(desktop, "stop")
