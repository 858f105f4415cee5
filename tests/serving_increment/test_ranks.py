"""The worker's side of a distributed servable, with threads as ranks. test_distributed.py has real ranks."""

import contextlib
import json
import os
import socket
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import numpy as np
import pytest

from serving_increment import agent, ranks
from src.common.errors import InputError
from src.inference.manifest import Manifest
from src.pangu_alpha_config import PanguAlphaConfig

MODEL = PanguAlphaConfig(num_layers=2, hidden_size=32, num_heads=4, seq_length=16, vocab_size=100)


def manifest(rank=0, rows=2):
    return Manifest(MODEL, "jieba", None, 9, rows, [16], [], rank=rank, world_size=2)


@pytest.fixture
def address(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("DISTRIBUTED_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("DISTRIBUTED_KEY", "secret")
    return "127.0.0.1", port


class Rank:
    """Answers each call with its input plus its number, and ends at the call of `dies_at`."""

    def __init__(self, address, number, rows=2, dies_at=None, calls=0):
        self.connection = Client(address, authkey=b"secret")
        ranks.send(self.connection, [number, calls, ranks.identity(manifest(number, rows))])
        self.refused, _ = ranks.receive(self.connection)
        self.number, self.dies_at, self.asked = number, dies_at, []
        self.thread = threading.Thread(target=self._work, daemon=True)
        if not self.refused:
            self.thread.start()

    def _work(self):
        try:
            while True:
                kind, inputs = ranks.receive(self.connection)
                self.asked.append(kind)
                if kind == self.dies_at:
                    break
                ranks.send(self.connection, kind, inputs[0].astype(np.float32) + self.number)
        except (EOFError, OSError):
            pass
        self.connection.close()

    def end(self):
        with socket.socket(fileno=os.dup(self.connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def eventually_answers(asked, seconds=10):
    """Return whether all ranks are accepted in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ranks.RanksError):
            return asked("1", np.ones(2, np.int32)).tolist() == [1, 1]
        time.sleep(0.02)
    return False


def test_all_ranks_are_asked_and_the_first_one_s_answer_counts(address):
    asked = ranks.Ranks(manifest())
    with pytest.raises(ranks.RanksError, match="try again"):
        asked("1", np.zeros(2, np.int32))
    Rank(address, 1), Rank(address, 0)
    assert eventually_answers(asked)
    for number in range(3):
        answer = asked("1", np.array([[number, 2]], np.int32))
        assert (answer.tolist(), answer.dtype) == ([[number, 2]], np.float32)


def test_a_lost_rank_is_told_at_once_and_new_ones_are_taken_in(address):
    asked = ranks.Ranks(manifest())
    first, second = Rank(address, 0), Rank(address, 1, dies_at="reorder")
    assert eventually_answers(asked)
    with pytest.raises(ranks.RanksError):
        asked("reorder", np.zeros(2, np.int32))
    for rank in (first, second):  # the connection of the first is closed too
        rank.thread.join(10)
        assert not rank.thread.is_alive()
    Rank(address, 0), Rank(address, 1)
    assert eventually_answers(asked)
    assert asked("reorder", np.zeros(2, np.int32)).tolist() == [0, 0]


def test_ranks_that_start_anew_take_the_place_of_those_before(address):
    asked = ranks.Ranks(manifest())
    before = [Rank(address, number) for number in range(2)]
    assert eventually_answers(asked)
    Rank(address, 0), Rank(address, 1)
    for rank in before:
        rank.thread.join(10)
        assert not rank.thread.is_alive()
    assert asked("1", np.ones(2, np.int32)).tolist() == [1, 1]


def test_a_rank_that_left_while_others_were_awaited_does_not_count(address):
    asked = ranks.Ranks(manifest())
    Rank(address, 1).end()
    Rank(address, 0)
    assert not eventually_answers(asked, 0.5)
    Rank(address, 1)
    assert eventually_answers(asked)


def test_ranks_out_of_step_are_told_to_start_anew(address):
    asked = ranks.Ranks(manifest())
    there = [Rank(address, 0, calls=7, dies_at=ranks.ANEW), Rank(address, 1, calls=6, dies_at=ranks.ANEW)]
    for rank in there:
        rank.thread.join(10)
        assert rank.asked == [ranks.ANEW]
    assert not eventually_answers(asked, 0.2)
    Rank(address, 1, calls=7), Rank(address, 0, calls=7)
    assert eventually_answers(asked)


def test_strangers_are_sent_away_and_disturb_nobody(address):
    asked = ranks.Ranks(manifest())
    assert "another export" in Rank(address, 1, rows=3).refused
    assert "another export" in Rank(address, 2).refused
    with pytest.raises(AuthenticationError):
        Client(address, authkey=b"wrong")
    with socket.create_connection(address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    stray = Client(address, authkey=b"secret")
    stray.send_bytes(json.dumps("hello").encode())
    stray.close()
    Rank(address, 0), Rank(address, 1)
    assert eventually_answers(asked)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DISTRIBUTED_ADDRESS", "6200", "must look like 127.0.0.1:6200"),
        ("DISTRIBUTED_ADDRESS", "127.0.0.1:0", "must look like"),
        ("DISTRIBUTED_KEY", "", "DISTRIBUTED_KEY is not given"),
        ("DISTRIBUTED_ADDRESS", "8.8.8.8:6200", "can't be listened on"),
    ],
)
def test_wrong_settings(address, monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told):
        ranks.Ranks(manifest())


def test_slices_may_have_the_modelzoo_s_names(tmp_path):
    (tmp_path / "device_1").mkdir()
    assert [ranks.slice_folder(tmp_path, rank).name for rank in range(2)] == ["device0", "device_1"]


def test_a_taken_port(address):
    asked = ranks.Ranks(manifest())
    with pytest.raises(InputError, match="another server may be there"):
        ranks.Ranks(manifest())
    assert asked


def test_the_rank_table_of_the_agent(tmp_path, monkeypatch):
    """That of the flag, of the environment, or beside the models, where the ModelZoo's document puts it."""
    monkeypatch.setattr(agent, "MODELS", tmp_path / "models")
    monkeypatch.delenv("RANK_TABLE", raising=False)
    assert agent.find_rank_table("") == ""
    (tmp_path / "hccl_8p.json").touch()
    assert agent.find_rank_table("") == str(tmp_path / "hccl_8p.json")
    monkeypatch.setenv("RANK_TABLE", "table.json")
    assert (agent.find_rank_table(""), agent.find_rank_table("flag.json")) == ("table.json", "flag.json")
