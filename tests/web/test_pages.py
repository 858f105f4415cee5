"""What a reader does on the Gradio pages, in a headless Chromium."""

import time

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from src.common.errors import BusyError
from src.common.settings import GenerationConfig
from src.serving.chat import Turn, dialogue
from tests.support.browser import asked_hosts, chromium, element, needs_chromium, until
from tests.support.web_pages import (
    ANSWER,
    NAME,
    PROMPT,
    assert_ends_soon,
    assert_nothing_from_elsewhere,
    choose,
    click,
    clipboard,
    grown,
    paged,
    said,
    status,
    value,
    visit,
    write,
)
from web import chat_page, text_page
from web.engine import local_engine

pytestmark = needs_chromium
slow = pytest.mark.slow


@pytest.mark.parametrize("browser", ["desktop", pytest.param("phone", marks=slow)], indirect=True)
def test_a_reader_s_way_through_the_text_page(known, browser):
    runtime = known.batch.runtime
    asked_hosts(browser)
    with paged(text_page.build(local_engine(known))) as port:
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
    with paged(chat_page.build(local_engine(known))) as port:
        visit(browser, port, "中文")
        assert value(browser, "memory") == "0"  # because the model reads only 128 tokens
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
        runtime.allowed = type(runtime.allowed)(0)
        click(browser, "retry")
        until(browser, lambda: len(prompts) == 3 and said(browser) == [PROMPT, ANSWER, second])
        runtime.allowed.release(100)
        until(browser, lambda: said(browser) == [PROMPT, ANSWER, second, ANSWER] and "种子" in status(browser))
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
    with paged(text_page.build(local_engine(endless))) as port:
        visit(desktop, port, "English")
        for name, number in (("length", 6), ("temperature", 1.5), ("top_p", 1)):
            write(desktop, name, str(number) + Keys.TAB)
        write(desktop, "text", "明月")

        def next_answer(button):
            made = endless.batch.generated_tokens
            click(desktop, button)
            until(desktop, lambda: endless.batch.generated_tokens == made + 6 and "seed" in status(desktop))
            time.sleep(0.3)  # the box may be updated a moment after the status line
            return value(desktop, "text"), status(desktop)

        answers = [next_answer(button)[0] for button in ("send", "retry")]
        assert answers[0] != answers[1]
        write(desktop, "seed", "7")
        (first, line), (second, _) = next_answer("retry"), next_answer("retry")
        assert first == second and "seed 7" in line and "the length limit was reached" in line
        *_, expected = endless.complete(
            ["明月"], [0], GenerationConfig(method="sample", max_new_tokens=6, temperature=1.5, seed=7)
        )
        assert first == "明月" + expected[0].text
        write(desktop, "temperature", "0" + Keys.TAB)
        assert next_answer("retry")[0] == next_answer("retry")[0]
        write(desktop, "seed", "x")
        click(desktop, "retry")
        until(desktop, lambda: "'x' is not a whole number" in status(desktop))


def test_errors_are_told_in_words(known, desktop, monkeypatch):
    def busy(*_, **settings):
        raise BusyError("64 requests are waiting already")

    with paged(text_page.build(local_engine(known))) as port:
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


@pytest.mark.parametrize("page", [text_page, chat_page])
def test_words_before_the_reader_s_language_is_known(known, page):
    """No component has Gradio's default label, such as Slider."""
    shown = [part["props"] for part in page.build(local_engine(known)).get_config_file()["components"]]
    labels = [props["label"] for props in shown if props.get("label") and props.get("show_label", True)]
    assert "温度" in labels and not {"Slider", "Textbox", "Chatbot", "Dropdown", "Dataset"} & set(labels)
    assert "Run" not in [props.get("value") for props in shown]


def test_a_closed_page_ends_its_answer(endless, tmp_path):
    with paged(text_page.build(local_engine(endless))) as port:
        with chromium(tmp_path, phone=False) as browser:
            visit(browser, port, "中文")
            write(browser, "text", "明月")
            click(browser, "send")
            until(browser, lambda: endless.batch.busy_rows == 1)
            browser.get("about:blank")
            made = endless.batch.generated_tokens
            until(browser, lambda: endless.batch.busy_rows == 0)
        assert endless.batch.generated_tokens - made < 55
