"""Files of prompts at the terminal, on a toy model."""

import io
import os
import threading
import time

import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.serving import terminal
from src.serving.terminal import answer, answer_file, ask_for_prompts, ask_on_rank_0, read_prompts
from src.tokenization_jieba import JiebaTokenizer
from tests.support.toy_runtime import PAD, ToyRuntime


class Counting(ToyRuntime):
    """Notes the size of each batch in tokens."""

    def __init__(self):
        super().__init__(160)
        self.batches = []

    def prefill(self, ids, lengths, capacity):
        self.batches.append(len(ids) * capacity)
        return super().prefill(ids, lengths, capacity)


@pytest.fixture
def generator(tiny_vocab):
    config = GenerationConfig(max_new_tokens=6, method="sample", seed=3, num_samples=2)
    return TextGenerator(Counting(), JiebaTokenizer(tiny_vocab), config, PAD)


def test_many_prompts_are_answered_in_batches_that_fit(generator, capsys):
    prompts = ["明月", "春风又绿江南岸", "低头思故乡", "今天是一个好天气"] * 25
    answer(generator, prompts, stream=False)
    together = capsys.readouterr().out
    [whole] = generator.runtime.batches
    generator.runtime.batches.clear()
    answer_file(generator, prompts, False, 4)
    assert capsys.readouterr().out == together  # the answers do not depend on the batch
    assert whole > 4 * 64 and max(generator.runtime.batches) <= 4 * 64
    assert 2 < len(generator.runtime.batches) < 50


def test_a_prompt_that_fits_into_no_batch_is_answered_alone(generator, capsys):
    long = "明月，" * 12
    assert generator.size(long) > 64
    answer_file(generator, ["明月", long, "明月"], False, 1)
    assert capsys.readouterr().out.count("Input: ") == 3 and len(generator.runtime.batches) == 3


def test_a_bad_line_is_reported_and_the_others_are_answered(generator, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    lines = ["明月".encode(), b"", b"\xff\xfe", ("明月，" * 60).encode(), "春风".encode()]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="^3 of 5 lines of --prompt_file can't be continued$"):
        answer_file(generator, read_prompts(str(file)), False, 8)
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("Input")] == ["Input: 明月", "Input: 春风"]
    errors = told.err.splitlines()
    assert errors[0].startswith("error: --prompt_file, line 2 has no tokens")
    assert errors[1] == "error: --prompt_file, line 3 is not UTF-8 text"
    assert errors[2].startswith("error: --prompt_file, line 4 has ") and len(errors) == 3


class Ranks:
    """The broadcast of two ranks that are threads. It counts its calls."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
        self.content, self.calls = b"", 0

    def rank(self, rank):
        class OneRank:
            def __init__(self):
                self.rank = rank

            def from_rank_0(_, content):
                if rank == 0:
                    self.content, self.calls = content, self.calls + 1
                self.barrier.wait()
                found = self.content
                self.barrier.wait()
                return found

        return OneRank()


def test_ranks_hear_of_each_other_while_the_user_thinks(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.stdin", open(reader, encoding="utf-8"))  # noqa: SIM115
    monkeypatch.setattr(terminal, "HEARTBEAT_SECONDS", 0.01)
    ranks, heard = Ranks(), {0: [], 1: []}
    threads = [
        threading.Thread(target=lambda rank=rank: heard[rank].extend(ask_on_rank_0(ranks.rank(rank))), daemon=True)
        for rank in (0, 1)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while ranks.calls < 3:  # nothing was typed yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert heard == {0: [], 1: []}
    os.write(writer, "明月\n春风\n".encode())
    os.close(writer)
    for thread in threads:
        thread.join(20)
    assert heard == {0: ["明月", "春风"], 1: ["明月", "春风"]}


def test_a_typed_line_that_is_not_utf_8_is_reported(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n\xe6\x98\x8e\n"), encoding="utf-8"))
    assert list(ask_for_prompts()) == ["明"]
    assert "error: this line is not UTF-8 text" in capsys.readouterr().err
