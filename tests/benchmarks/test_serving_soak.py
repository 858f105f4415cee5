"""The soak for some seconds: a healthy server passes, and each fault of another one is told."""

import pytest

from benchmarks.serving_soak import SoakArguments, run
from src.common.errors import InputError
from tests.support.serving import serving, toy_service
from tests.support.toy_runtime import ToyRuntime
from tests.support.web_pages import paged
from web import chat_page
from web.engine import local_engine


@pytest.fixture(scope="module")
def service(tiny_vocab):
    made = toy_service(ToyRuntime(160), tiny_vocab)
    yield made
    made.close()


def soak(port, server="page", seconds=4.0):
    run(SoakArguments(port=int(port), server=server, seconds=seconds, clients=4, every=0.2, schema=False))


@pytest.mark.parametrize("server", ["page", "chat"])
def test_a_healthy_server_passes(service, server, capsys):
    with serving(service) if server == "page" else paged(chat_page.build(local_engine(service))) as port:
        soak(port, server)
    lines = capsys.readouterr().out.splitlines()
    kinds = {line.split("|")[1].strip() for line in lines if line.startswith("|")}
    wanted = {"completion", "chat", "hung up", "query"} if server == "page" else {"event", "odd event"}
    assert wanted & kinds  # a busy machine sends few in this time
    assert ", 0 with a status that they must not get; 0 rounds" in lines[-2] and lines[-1].startswith("memory, MiB: ")


def test_faults_are_told(service, monkeypatch, capsys):
    with serving(service) as port:
        monkeypatch.setattr("src.serving.service.TextService.check", lambda self: 1 / 0)
        with pytest.raises(InputError, match=r"faults; the first: GET /health : 500"):
            soak(port, seconds=2.0)


def test_memory_that_grows_is_told(service, monkeypatch):
    sizes = iter(range(100_000))
    monkeypatch.setattr("benchmarks.serving_soak._resident", lambda process: next(sizes) << 20)
    with serving(service) as port, pytest.raises(InputError, match="the memory grew from"):
        soak(port, seconds=2.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "no model: give --model, or the --port"),
        ({"server": "serving"}, "--server serving needs the --port"),
        ({"port": 1, "clients": 0}, "--clients is 0"),
        ({"port": 1, "seconds": 0.0}, "must be positive"),
    ],
)
def test_impossible_flags(settings, told):
    with pytest.raises(InputError, match=told):
        SoakArguments(**settings)
