"""The page in a headless Chromium: typing, streaming, stopping and the history."""

import time

import pytest
from selenium.webdriver.common.by import By

from tests.support.browser import chromium, element, needs_chromium, telling, until
from tests.support.serving import serving

PROMPT, ANSWER = "四川的省会是哪里?", "春风又绿江南岸明月"
pytestmark = needs_chromium


@pytest.fixture
def service(tiny_vocab):
    with telling(ANSWER, tiny_vocab) as made:
        yield made


@pytest.fixture(params=["desktop", "phone"])
def browser(request, tmp_path):
    with chromium(tmp_path, request.param == "phone") as driver:
        yield driver


def test_a_reader_s_way_through_the_page(service, browser):
    with serving(service) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        if element(browser, "language").text == "中文":
            element(browser, "language").click()
        element(browser, "prompt").send_keys(PROMPT)
        element(browser, "send").click()
        seen = [""]
        deadline = time.monotonic() + 60
        while seen[-1] != PROMPT + ANSWER and time.monotonic() < deadline:  # some tokens add no text
            service.batch.runtime.allowed.release()
            time.sleep(0.1)
            text = element(browser, "text").text
            seen += [text] * (text != seen[-1])
        assert seen[-1] == PROMPT + ANSWER
        assert len(seen) > 5 and all(later.startswith(before) for before, later in zip(seen, seen[1:], strict=False))
        service.batch.runtime.allowed.release()
        until(browser, lambda: "个词元" in element(browser, "status").text)
        assert "春风" in element(browser, "history").text
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")

        element(browser, "send").click()
        until(browser, lambda: element(browser, "stop").is_displayed() and service.batch.busy_rows == 1)
        element(browser, "stop").click()
        until(browser, lambda: element(browser, "status").text == "已停止")
        for _ in range(3):
            service.batch.runtime.allowed.release()
            time.sleep(0.1)
        until(browser, lambda: service.batch.busy_rows == 0)

        element(browser, "language").click()
        assert element(browser, "send").text == "Write"
        browser.find_element(By.CSS_SELECTOR, "#history button").click()
        assert element(browser, "text").text.startswith(PROMPT)
        addresses = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert addresses and all(address.startswith(f"http://127.0.0.1:{port}/") for address in addresses)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_errors_are_told_in_words(service, browser):
    with serving(service, api_key="key") as port:
        browser.get(f"http://127.0.0.1:{port}/")
        if element(browser, "language").text == "English":
            element(browser, "language").click()
        element(browser, "prompt").send_keys(PROMPT)
        element(browser, "send").click()
        until(browser, lambda: "API key" in element(browser, "error").text)
        element(browser, "key").send_keys("key")
        service.batch.runtime.allowed.release(100)
        element(browser, "send").click()
        until(browser, lambda: "tokens" in element(browser, "status").text)
        browser.set_network_conditions(offline=True, latency=0, throughput=0)
        element(browser, "send").click()
        until(browser, lambda: "can't be reached" in element(browser, "error").text)


def test_a_reader_behind_a_proxy(service, browser):
    service.batch.runtime.allowed.release(100)
    with serving(service, root_path="/pangu") as port:
        browser.get(f"http://127.0.0.1:{port}/pangu/")
        element(browser, "prompt").send_keys(PROMPT)
        element(browser, "send").click()
        until(browser, lambda: element(browser, "text").text == PROMPT + ANSWER)
