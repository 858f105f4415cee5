"""Browsers and models for the tests of the Gradio pages."""

import pytest

from tests.support.browser import chromium, telling
from tests.support.serving import toy_service
from tests.support.web_pages import ANSWER, NAME, EndlessRuntime


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
    """A model that generates ANSWER, one token each time it is allowed to."""
    with telling(ANSWER, tiny_vocab) as service:
        service.name = NAME
        yield service


@pytest.fixture
def endless(tiny_vocab):
    service = toy_service(EndlessRuntime(), tiny_vocab)
    service.name = NAME
    yield service
    service.close()
