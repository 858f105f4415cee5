"""The quickstart's model, exported, in MindSpore Serving and on the page."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.support.browser import chromium, element, needs_chromium, until
from tests.support.programs import ROOT
from tests.support.serving import ask, marked, predicted, script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("serving_python")]
QUESTION, ANSWER = "四川的省会是哪里?", "成都"
GRPC, REST, PAGE, LOCAL = 15530, 11530, 15030, 15031
GRPC_CLIENT = f"""
from mindspore_serving.client import Client
[answer] = Client("127.0.0.1:{GRPC}", "pangu", "predict").infer({{"input_sentence": "{QUESTION}"}})
print(answer["output_sentence"])
"""
# Records every text that the element of the answer has shown.
WATCH = """
window.shown = []
const place = document.getElementById("text")
new MutationObserver(() => window.shown.push(place.textContent)).observe(
    place, {childList: true, characterData: true, subtree: true})
"""


@pytest.fixture(scope="module")
def quickstart():
    """The run of the quickstart. It is trained if it does not exist."""
    run = ROOT / "output/quickstart/run"
    if not (run / "config.yaml").is_file():
        done = subprocess.run(
            ["bash", ROOT / "scripts/run_quickstart.sh"], cwd=ROOT, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def exported(quickstart, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = ROOT / "output/quickstart/tokenizer"
    done = subprocess.run(
        [
            "bash",
            ROOT / "scripts/run_standalone_export.sh",
            "none",
            quickstart,
            "",
            "CPU",
            f"--data.tokenizer_path={tokenizer}",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Export finished and now exit." in done.stdout, done.stderr
    return folder / "device0", tokenizer


def asked_on_the_page(port, folder, phone=False, question=QUESTION):
    """Return every text that the page has shown for an answer, the final one last."""
    with chromium(folder, phone) as browser:
        browser.get(f"http://127.0.0.1:{port}/")
        if element(browser, "language").text == "中文":
            element(browser, "language").click()
        element(browser, "prompt").send_keys(question)
        browser.execute_script(WATCH)
        element(browser, "send").click()
        until(browser, lambda: "个词元" in element(browser, "status").text)
        shown = browser.execute_script("return window.shown")
        return [text for text, before in zip(shown, ["", *shown], strict=False) if text != before]


@needs_chromium
def test_serving_s_rest_grpc_and_page_know_the_answer(exported, serving_python, tmp_path):
    model, tokenizer = exported
    environment = os.environ | {
        "PANGU_RUN": str(tmp_path / "run"),
        "PANGU_MODEL": str(model),
        "PANGU_TOKENIZER": str(tokenizer),
        "GRPC_PORT": str(GRPC),
        "REST_PORT": str(REST),
        "PAGE_PORT": str(PAGE),
    }
    try:
        assert script("start_pangu_standalone", environment).returncode == 0
        status, body = predicted([{"input_sentence": QUESTION}], REST)
        assert (status, body) == (200, {"instances": [{"finish_reason": "end", "output_sentence": ANSWER}]})
        told = subprocess.run([serving_python, "-c", GRPC_CLIENT], capture_output=True, text=True, timeout=60)
        assert told.stdout.strip() == ANSWER
        for phone in (False, True):
            assert asked_on_the_page(PAGE, tmp_path / f"profile{phone}", phone)[-1] == QUESTION + ANSWER
    finally:
        assert script("stop_pangu", environment).returncode == 0
    assert marked(environment) == {}


@needs_chromium
def test_the_page_shows_tokens_as_they_are_made(exported, tmp_path):
    model, tokenizer = exported
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serving_increment.flask.server",
            "--model",
            model,
            "--tokenizer",
            tokenizer,
            "--port",
            str(LOCAL),
        ],
        cwd=ROOT,
    )
    try:
        while True:
            assert server.poll() is None
            try:
                assert json.loads(ask(LOCAL, "GET", "/health")[2])["status"] == "ok"
                break
            except ConnectionRefusedError:
                time.sleep(0.2)
        assert asked_on_the_page(LOCAL, tmp_path / "one")[-1] == QUESTION + ANSWER  # the answer is one token
        shown = asked_on_the_page(LOCAL, tmp_path / "many", question="四川")  # the answer completes the question first
        assert shown[-1].startswith("四川的省会") and shown[-1].endswith(ANSWER)
        assert len(shown) > 4
        assert all(later.startswith(before) for before, later in zip(shown, shown[1:], strict=False))
    finally:
        server.terminate()
        server.wait(30)
