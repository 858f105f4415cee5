"""A headless Chromium and a model with a known answer, for the tests of the pages."""

import contextlib
import json
import shutil

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.serving import toy_service
from tests.support.toy_runtime import SlowRuntime

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)


class OneTokenAtATime(SlowRuntime):
    """Gives the logits of known tokens, one after the other."""

    def __init__(self, tokens):
        super().__init__(160)
        self.seq_length = 128
        self.table[:] = 0
        self.tokens = tokens
        self.told = 0

    def _logits(self, positions, rows):
        logits = super()._logits(positions, rows).copy()
        logits[:, self.tokens[self.told]] = 50
        self.told += 1
        return logits

    def join(self, ids, lengths, rows):
        super().join(ids, lengths, rows)
        self.told = 0
        return self._logits(lengths - 1, rows)


@contextlib.contextmanager
def telling(answer, vocabulary):
    """Yield a service that generates `answer`, one token for each release of its `batch.runtime.allowed`."""
    made = toy_service(SlowRuntime(160), vocabulary)
    tokens = made.tokenizer.encode(answer) + [9]
    made.close()
    runtime = OneTokenAtATime(tokens)
    made = toy_service(runtime, vocabulary)
    try:
        yield made
    finally:
        runtime.allowed.release(10000)
        made.close()


@contextlib.contextmanager
def chromium(folder, phone, language="zh-CN"):
    """Yield a browser with its profile in `folder`, as a desktop or a phone."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [
        *FLAGS,
        f"--lang={language}",
        f"--accept-lang={language}",
        f"--user-data-dir={folder}",
        "--window-size=1280,900",
    ]:
        options.add_argument(flag)
    if phone:
        options.add_experimental_option(
            "mobileEmulation", {"deviceMetrics": {"width": 390, "height": 844, "pixelRatio": 2.0}}
        )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def element(browser, identity):
    return browser.find_element(By.ID, identity)


def until(browser, condition):
    """Wait until a condition is true. If the page replaces an element meanwhile, try again."""
    waiting = WebDriverWait(browser, 30, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: condition())


def asked_hosts(browser):
    """Return hosts and ports of all requests of the browser since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    return {address.split("/")[2] for address in addresses if address.startswith(("http", "ws"))}
