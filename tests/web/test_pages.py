"""The Gradio pages in a headless Chromium, over a model in this process and over a server in another one."""

import socket
import time

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from serving_increment.flask.app import AppSettings, create_app
from src.common.errors import BusyError
from src.serving.chat import Turn, dialogue
from src.serving.openai_client import Answer
from tests.support.browser import asked_hosts, chromium, element, needs_chromium, telling, until
from tests.support.serving import ask, serving_app, toy_service
from tests.support.web_pages import EndlessRuntime, api_process, paged
from web import chat_page, text_page
from web.engine import LocalEngine, RemoteEngine

PROMPT, ANSWER = "明月何时照我还", "江春明南月岸风绿又江春明南月"
NAME = "a model"
pytestmark = needs_chromium


slow = pytest.mark.slow
real_info, real_connect = socket.getaddrinfo, socket.socket.connect


@pytest.fixture(scope="module")
def browser(request, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile"), request.param == "phone") as driver:
        yield driver


@pytest.fixture(scope="module")
def desktop(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile"), phone=False, language="en-US") as driver:
        yield driver


@pytest.fixture
def known(tiny_vocab):
    """A model that tells ANSWER, a token each time it is allowed to."""
    with telling(ANSWER, tiny_vocab) as service:
        yield service


@pytest.fixture
def endless(tiny_vocab):
    service = toy_service(EndlessRuntime(), tiny_vocab)
    yield service
    service.close()


def visit(browser, port, language):
    """The page, in a language."""
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
    """Replace what stands in a box, as a reader does."""
    box(browser, identity).send_keys(Keys.CONTROL, "a")
    box(browser, identity).send_keys(Keys.BACKSPACE, text)


def click(browser, identity):
    until(browser, lambda: element(browser, identity).is_displayed())
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element(browser, identity))
    element(browser, identity).click()


def status(browser):
    return element(browser, "status").text


def said(browser):
    """What both sides said, in turn."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#chat .message-content')].map(message => message.innerText.trim())"
    )


def clipboard(browser):
    return browser.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")


def grown(browser, service, read, whole):
    """All that is seen of an answer, while the model is allowed a token at a time."""
    seen = [""]
    deadline = time.monotonic() + 60
    while seen[-1] != whole and time.monotonic() < deadline:  # some tokens have no text of their own
        service.batch.runtime.allowed.release()
        time.sleep(0.15)
        text = read()
        seen += [text] * (text != seen[-1])
    assert seen[-1] == whole
    service.batch.runtime.allowed.release()
    return seen[1:]


def assert_ends_soon(service):
    """The answer is given up within some tokens, of which it has many more to tell."""
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


@pytest.mark.parametrize("browser", ["desktop", pytest.param("phone", marks=slow)], indirect=True)
def test_a_reader_s_way_through_the_text_page(known, browser):
    runtime = known.batch.runtime
    asked_hosts(browser)
    with paged(text_page.build(LocalEngine(known, NAME))) as port:
        visit(browser, port, "中文")
        assert value(browser, "model") == NAME
        write(browser, "text", PROMPT)
        click(browser, "send")
        seen = grown(browser, known, lambda: value(browser, "text"), PROMPT + ANSWER)
        assert len(seen) > 5 and all(later.startswith(before) for before, later in zip(seen, seen[1:], strict=False))
        until(browser, lambda: f"{len(ANSWER)} 字" in status(browser))

        click(browser, "send")
        until(browser, lambda: element(browser, "stop").is_displayed() and known.batch.busy_rows == 1)
        assert not any(element(browser, button).is_enabled() for button in ("retry", "undo", "clear"))
        runtime.allowed.release(2)
        until(browser, lambda: len(value(browser, "text")) > len(PROMPT + ANSWER))
        click(browser, "stop")
        until(browser, lambda: status(browser) == "已停止")
        assert element(browser, "send").is_displayed()
        assert_ends_soon(known)
        stopped = value(browser, "text")
        assert stopped.startswith(PROMPT + ANSWER + ANSWER[:1]) and len(stopped) < len(PROMPT + ANSWER * 2)

        runtime.allowed.release(100)
        click(browser, "retry")
        until(browser, lambda: value(browser, "text") == PROMPT + ANSWER * 2)
        until(browser, lambda: "字" in status(browser) and "种子" in status(browser))
        for before in (PROMPT + ANSWER, PROMPT):
            click(browser, "undo")
            until(browser, lambda before=before: value(browser, "text") == before)
        click(browser, "undo")
        until(browser, lambda: status(browser) == "没有可以撤销的")

        choose(browser, "English")
        assert element(browser, "send").text == "Write"
        browser.refresh()
        until(browser, lambda: browser.find_elements(By.ID, "send") and element(browser, "send").text == "Write")
        [example] = [
            button
            for button in browser.find_elements(By.CSS_SELECTOR, "#examples button")
            if button.text.startswith("法国")
        ]
        example.click()
        until(browser, lambda: value(browser, "text") == "法国的首都是哪座城市?")
        both = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": both})
        browser.find_element(By.CSS_SELECTOR, "#text button[aria-label=Copy]").click()
        until(browser, lambda: clipboard(browser) == "法国的首都是哪座城市?")
        click(browser, "clear")
        until(browser, lambda: value(browser, "text") == "")
        click(browser, "send")
        until(browser, lambda: status(browser) == "Write something first")
        assert_nothing_from_elsewhere(browser, port)


@pytest.mark.parametrize("browser", [pytest.param("desktop", marks=slow), "phone"], indirect=True)
def test_a_reader_s_way_through_the_chat(known, browser):
    runtime = known.batch.runtime
    asked_hosts(browser)
    prompts = []
    join = runtime.join
    runtime.join = lambda ids, lengths, rows: prompts.append(known.tokenizer.decode(ids[0])) or join(ids, lengths, rows)
    with paged(chat_page.build(LocalEngine(known, NAME))) as port:
        visit(browser, port, "中文")
        assert value(browser, "memory") == "0"  # of a model that reads 128 tokens
        write(browser, "memory", "1" + Keys.TAB)
        write(browser, "message", PROMPT + Keys.ENTER)
        seen = grown(browser, known, lambda: "".join(said(browser)[1:]), ANSWER)
        assert len(seen) > 5 and all(later.startswith(before) for before, later in zip(seen, seen[1:], strict=False))
        until(browser, lambda: f"{len(ANSWER)} 字" in status(browser))
        assert said(browser) == [PROMPT, ANSWER] and value(browser, "message") == ""
        runtime.allowed.release(100)
        write(browser, "system", "春天")
        second = "<b>低头</b>&lt;"
        write(browser, "message", second)
        click(browser, "send")
        until(browser, lambda: said(browser) == [PROMPT, ANSWER, second, ANSWER])
        until(browser, lambda: "种子" in status(browser))
        click(browser, "retry")
        until(browser, lambda: len(prompts) == 3 and "种子" in status(browser))
        assert said(browser) == [PROMPT, ANSWER, second, ANSWER]
        turns = [Turn("system", "春天"), Turn("user", PROMPT), Turn("assistant", ANSWER), Turn("user", second)]
        assert prompts == [
            known.tokenizer.decode(known.tokenizer.encode(dialogue(some))) for some in ([turns[1]], turns, turns)
        ]
        click(browser, "undo")
        until(browser, lambda: said(browser) == [PROMPT, ANSWER] and value(browser, "message") == second)

        runtime.allowed = type(runtime.allowed)(0)
        click(browser, "send")
        until(browser, lambda: element(browser, "stop").is_displayed() and known.batch.busy_rows == 1)
        runtime.allowed.release(2)
        until(browser, lambda: len(said(browser)) == 4)
        click(browser, "stop")
        until(browser, lambda: status(browser) == "已停止")
        assert_ends_soon(known)
        assert said(browser)[3] and ANSWER.startswith(said(browser)[3]) and said(browser)[3] != ANSWER
        click(browser, "clear")
        until(browser, lambda: said(browser) == [])
        assert_nothing_from_elsewhere(browser, port)


def test_settings_reach_the_model_and_retries_differ(endless, desktop):
    with paged(text_page.build(LocalEngine(endless, NAME))) as port:
        visit(desktop, port, "English")
        for name, number in (("length", 6), ("temperature", 1.5), ("top_p", 1)):
            write(desktop, name, str(number) + Keys.TAB)
        write(desktop, "text", "明月")

        def next_answer(button):
            made = endless.batch.generated_tokens
            click(desktop, button)
            until(desktop, lambda: endless.batch.generated_tokens == made + 6 and "seed" in status(desktop))
            time.sleep(0.3)  # the box may show its last change a moment after the line below it
            return value(desktop, "text"), status(desktop)

        answers = [next_answer(button)[0] for button in ("send", "retry")]
        assert answers[0] != answers[1]
        write(desktop, "seed", "7")
        (first, line), (second, _) = next_answer("retry"), next_answer("retry")
        assert first == second and "seed 7" in line and "the length limit was reached" in line
        *_, expected = endless.complete(["明月"], [0], settings_of(max_new_tokens=6, temperature=1.5, seed=7))
        assert first == "明月" + expected[0].text
        write(desktop, "temperature", "0" + Keys.TAB)
        assert next_answer("retry")[0] == next_answer("retry")[0]
        write(desktop, "seed", "x")
        click(desktop, "retry")
        until(desktop, lambda: "'x' is not a whole number" in status(desktop))


def settings_of(**settings):
    from src.common.settings import GenerationConfig

    return GenerationConfig(method="sample", **settings)


def test_errors_are_told_in_words(known, desktop, monkeypatch):
    def busy(*_):
        raise BusyError("64 requests are waiting already")

    with paged(text_page.build(LocalEngine(known, NAME))) as port:
        visit(desktop, port, "English")
        write(desktop, "text", PROMPT * 30)
        click(desktop, "send")
        until(desktop, lambda: "The text is too long" in status(desktop) and "at most 127" in status(desktop))
        assert value(desktop, "text") == PROMPT * 30
        choose(desktop, "中文")
        click(desktop, "send")
        until(desktop, lambda: "文本太长，请缩短后再试" in status(desktop))
        write(desktop, "text", PROMPT)
        known.batch.runtime.failure = RuntimeError("a secret of the inside")
        known.batch.runtime.allowed.release()
        click(desktop, "send")
        until(desktop, lambda: status(desktop) == "内部出错，请看它的日志")
        monkeypatch.setattr(known.batch, "run", busy)
        click(desktop, "send")
        until(desktop, lambda: "模型正忙" in status(desktop))


def test_the_page_itself_asks_nothing_of_others(known, monkeypatch):
    asked = []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **settings: asked.append(host) or real_info(host, *more, **settings)
    )
    monkeypatch.setattr(
        socket.socket, "connect", lambda place, address: asked.append(address[0]) or real_connect(place, address)
    )
    for page in (text_page, chat_page):
        with paged(page.build(LocalEngine(known, NAME))) as port:
            status, _, text = ask(port, "GET", "/")
    time.sleep(0.5)
    assert status == 200 and "gradio" in text and set(asked) == {"127.0.0.1"}


@pytest.mark.parametrize("page", [text_page, chat_page])
def test_words_before_the_reader_s_language_is_known(known, page):
    """And none of Gradio's own, such as Slider."""
    shown = [part["props"] for part in page.build(LocalEngine(known, NAME)).get_config_file()["components"]]
    labels = [props["label"] for props in shown if props.get("label") and props.get("show_label", True)]
    assert "温度" in labels and not {"Slider", "Textbox", "Chatbot", "Dropdown", "Dataset"} & set(labels)
    assert "Run" not in [props.get("value") for props in shown]


class Painter:
    """An engine that answers with a picture from somewhere else."""

    longest, first_model, writes_markdown = 64, NAME, True

    def __init__(self, address):
        self.address = address

    def model_list(self):
        return [self.first_model]

    def reply(self, model, turns, config):
        yield Answer(f"**so** ![picture]({self.address})", "stop")


def test_pictures_from_elsewhere_are_not_fetched(desktop):
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(1)
        engine = Painter(f"http://127.0.0.1:{elsewhere.getsockname()[1]}/picture.png")
        with paged(chat_page.build(engine)) as port:
            visit(desktop, port, "English")
            write(desktop, "message", PROMPT + Keys.ENTER)
            until(desktop, lambda: len(desktop.find_elements(By.CSS_SELECTOR, "#chat .message-content img")) == 1)
            with pytest.raises(TimeoutError):
                elsewhere.accept()


def test_a_closed_page_ends_its_answer(endless, tmp_path):
    with paged(text_page.build(LocalEngine(endless, NAME))) as port:
        with chromium(tmp_path, phone=False) as browser:
            visit(browser, port, "中文")
            write(browser, "text", "明月")
            click(browser, "send")
            until(browser, lambda: endless.batch.busy_rows == 1)
            browser.get("about:blank")
            made = endless.batch.generated_tokens
            until(browser, lambda: endless.batch.busy_rows == 0)
        assert endless.batch.generated_tokens - made < 55


def test_a_server_in_another_process(tiny_vocab, desktop):
    with api_process(tiny_vocab, "key") as (process, address):
        engine = RemoteEngine(address, "key", "", 30.0)
        with paged(text_page.build(engine)) as port, paged(chat_page.build(engine)) as chat_port:
            visit(desktop, port, "English")
            assert value(desktop, "model") == "pangu-alpha"
            write(desktop, "text", "明月")
            click(desktop, "send")
            seen = set()
            until(desktop, lambda: seen.add(value(desktop, "text")) or "seed" in status(desktop))
            assert len(seen) > 5
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
        blocks = chat_page.build(RemoteEngine(f"http://127.0.0.1:{api_port}/v1", "key", "", 30.0))
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
