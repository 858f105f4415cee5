"""The benchmarks on tiny shapes: the PyTorch peer computes the same, and the tables have their rows."""

import os
import sys
import time

import numpy as np
import pytest
from mindspore import Tensor

from benchmarks import decode, eval_speed, preprocess, scaling, train_step
from benchmarks.harness import Contestant, ContestantError, ask_together, cores, ratio_of_pairs
from src.common.errors import InputError
from src.dataset import causal
from src.inference.mindspore.runtime import CachedRuntime
from src.pangu_alpha import PanguAlphaWithLoss
from tests.support.programs import TINY, random_ids, random_model

TINY_FLAGS = ["--num_layers=2", "--hidden_size=32", "--num_heads=4", "--vocab_size=50"]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is the peer: pip install -r requirements-benchmark.txt")


@pytest.fixture(scope="module")
def model_and_peer(torch):
    from benchmarks.torch_peer import PanguAlphaPeer

    model, weights = random_model(seed=3)
    peer = PanguAlphaPeer(TINY)
    peer.load(weights)
    return model, peer


def test_our_side_runs_where_the_peer_is_not():
    arguments = train_step.BenchmarkArguments(2, 32, 4, 16, 2, 50)
    step = train_step.make_ours(arguments)
    losses = [step()[1] for _ in range(2)]
    np.testing.assert_allclose(losses, np.log(50), atol=0.1)
    assert losses[1] != losses[0]
    work = decode.make_ours(arguments.model)
    assert len(work(8, 0)) == 1 and len(work(8, 2)) == 2


def test_the_peer_has_our_logits_and_loss(torch, model_and_peer):
    from benchmarks.torch_peer import causal_bias

    model, peer = model_and_peer
    ids = random_ids(3)
    position_ids, attention_mask = causal(ids)
    ours = model(*map(Tensor, (ids[:, :-1], position_ids, attention_mask))).asnumpy()
    our_loss = PanguAlphaWithLoss(TINY, model)(*map(Tensor, (ids, position_ids, attention_mask))).asnumpy()
    tokens, places = torch.from_numpy(ids).long(), torch.from_numpy(position_ids).long()
    with torch.no_grad():
        logits = peer(tokens[:, :-1], places, causal_bias(TINY.seq_length)).numpy()
        loss = peer.loss(tokens, places, causal_bias(TINY.seq_length)).numpy()
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(logits, ours, atol=1e-4)
    np.testing.assert_allclose(loss, our_loss, atol=1e-4)


def test_the_peer_decodes_as_our_runtime(model_and_peer):
    from benchmarks.torch_peer import CachedPeer

    model, peer = model_and_peer
    ours, theirs = CachedRuntime(model), CachedPeer(peer)
    ids = random_ids(2)
    prompt = ids[:, :10]
    np.testing.assert_allclose(
        theirs.prefill(prompt, 16), ours.prefill(prompt, np.full(2, 10, np.int32), 16), atol=1e-4
    )
    for position in range(10, 16):
        expected = ours.decode(ids[:, position], np.full(2, position, np.int32))
        np.testing.assert_allclose(theirs.decode(ids[:, position], position), expected, atol=1e-4)


def run(monkeypatch, capsys, benchmark, flags):
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    benchmark.main()
    return [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def test_the_train_step_s_table(torch, monkeypatch, capsys):
    header, _, ours, eager = run(
        monkeypatch,
        capsys,
        train_step,
        [*TINY_FLAGS, "--seq_length=16", "--batch_size=2", "--steps=2", "--compile=false"],
    )
    assert [cell.strip() for cell in header[1:3]] == ["training step", "median tokens/s"]
    assert ours[1].strip() == train_step.OURS and eager[1].strip() == train_step.EAGER
    assert all(float(cell.replace(",", "")) > 0 for row in (ours, eager) for cell in row[2:6])
    assert " to " in eager[6]


def test_both_sides_start_from_the_loss_of_a_uniform_guess(torch):
    arguments = train_step.BenchmarkArguments(2, 32, 4, 16, 2, 50)
    for contestant in (train_step.make_ours(arguments), train_step.make_peer(arguments, compiled=False)):
        losses = [contestant()[1] for _ in range(3)]
        assert losses[0] == pytest.approx(np.log(50), abs=0.05)
        assert losses[2] < losses[0]


def test_the_decoding_s_tables(torch, monkeypatch, capsys):
    rows = run(
        monkeypatch, capsys, decode, [*TINY_FLAGS, "--prompts=[16]", "--contexts=[16,32]", "--turns=1", "--tokens=2"]
    )
    assert [row[1].strip() for row in rows if row[1].strip().isdigit()] == ["16", "16", "32"]
    assert [row[1].split(",")[0].strip() for row in rows[::3][:2]] == ["prefill", "decoding"]


def test_the_evaluation_s_tables(monkeypatch, capsys):
    rows = run(
        monkeypatch,
        capsys,
        eval_speed,
        [*TINY_FLAGS, "--seq_length=128", "--questions=2", "--turns=1", "--shared_questions=2", "--shared_tokens=60"],
    )
    assert [row[1].strip().split(":")[0] for row in rows if "---" not in row[1]] == [
        "C3",
        "one by one, padded, as the originals",
        "batches by length",
        "a common beginning",
        "batches by length",
        "the beginning computed once",
    ]
    assert "8 texts" in rows[0][1] and " to " in rows[2][4] and not rows[3][4].strip()


def test_ways_that_find_other_scores_are_not_compared():
    from src.inference.score_request import Request

    ways = {"one": lambda groups: [np.zeros(3)], "other": lambda groups: [np.ones(3)]}
    with pytest.raises(InputError, match="'other' computes other scores than 'one'"):
        eval_speed.race(ways, [[Request([1, 2, 3, 4])]], 1)


needs_two_cores = pytest.mark.skipif(len(cores()) < 2, reason="a core a process")


@needs_two_cores
@pytest.mark.slow
def test_the_scaling_s_tables(monkeypatch, capsys):
    rows = run(monkeypatch, capsys, scaling, [*TINY_FLAGS, "--seq_length=16", "--batch_size=2", "--steps=2"])
    names = ["1 process", "1 process, 2 cores", "dp2", "dp2, optimizer_shard", "tp2"]
    rates, messages, memory = (
        [[cell.strip() for cell in row[1:-1]] for row in rows[begin:end]] for begin, end in ((2, 7), (9, 12), (14, 19))
    )
    assert [row[0] for row in rates] == [row[0] for row in memory] == names
    assert [row[0] for row in messages] == names[2:]
    assert [row[1] for row in rates] == ["32", "32", "64", "64", "32"]
    assert all(float(cell.replace(",", "")) > 0 for row in rates for cell in row[2:5])
    assert all("%" in row[4] for row in messages)


def test_the_scaling_s_report(capsys):
    """Rates, ratios and shares are computed turn by turn. Memory is that of each row's rank."""
    alone = scaling.Result(100, 0, [1.0, 2.0], [], scaling.Memory(2**20, 2**21, 0, 2**25))
    two = scaling.Result(200, 3 * 2**19, [1.0, 2.5], [0.9, 2.0], scaling.Memory(2**20, 2**20, 2**19, 2**26))
    scaling.report({scaling.ALONE: alone, "dp2": two})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert cells[3] == ["dp2", "200", "140", "80", "200", "1.80 (1.60 to 2.00)"]
    assert cells[7] == ["dp2", "1.5", "1750", "1450", "15% (10% to 20%)"]
    assert cells[11:] == [
        ["1 process", "1.00", "2.00", "0.00", "1.000", "32"],
        ["dp2", "1.00", "1.00", "0.50", "0.833", "64"],
    ]


def test_the_preprocessing_s_table(capsys):
    preprocess.report([100.0, 200.0], [200.0, 320.0], [190.0, 300.0], 2)
    output = capsys.readouterr().out
    assert " 150 |       100 |       200 |" in output
    assert "ratio 1.70 (1.50 to 1.90); of what the cores reach: 0.94" in output


def test_ratios_are_of_turns():
    assert ratio_of_pairs([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == "2.00 (1.00 to 3.00)"


def test_a_contestant_s_failure_is_told(capfd):
    contestant = Contestant(1, _fails, "no such thing")
    with pytest.raises(ContestantError, match="KeyError: 'no such thing'"):
        contestant()
    contestant.close()


def _fails(word):
    raise KeyError(word)


@needs_two_cores
def test_contestants_that_need_each_other():
    """Contestants work at the same time on cores of their own. If one fails, the others are not waited for."""
    team = [Contestant(1, _Waits, first_core=core) for core in range(2)]
    ask_together(team, 0)
    first, second = ask_together(team, 1)
    assert [first[0], second[0]] == [[core] for core in cores()[:2]]
    assert max(first[1], second[1]) < min(first[2], second[2])
    with pytest.raises(ContestantError, match="OSError: gone"):
        ask_together(team, 600, cores()[1])
    for contestant in team:
        contestant.close()


class _Waits:
    def __call__(self, seconds, failing=None):
        here, begin = sorted(os.sched_getaffinity(0)), time.monotonic()
        if failing in here:
            raise OSError("gone")
        time.sleep(seconds)
        return here, begin, time.monotonic()


@pytest.mark.parametrize("benchmark", [train_step, decode])
def test_without_torch_the_remedy_is_named(monkeypatch, benchmark):
    monkeypatch.setattr("benchmarks.harness.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    with pytest.raises(InputError, match="pip install -r requirements-benchmark.txt"):
        benchmark.main()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_step.BenchmarkArguments(steps=0), "must be at least 1"),
        (lambda: train_step.BenchmarkArguments(vocab_size=10), "--vocab_size is 10; it must be at least 11"),
        (lambda: decode.BenchmarkArguments(tokens=0), "must be at least 1"),
        (lambda: decode.BenchmarkArguments(contexts=[]), "at least one length"),
        (lambda: eval_speed.BenchmarkArguments(questions=0), "must be at least 1"),
        (lambda: eval_speed.BenchmarkArguments(c3="c3-d-dev.json"), "--c3 and --tokenizer_path go together"),
        (lambda: preprocess.BenchmarkArguments(num_process=1), "--num_process is 1; it must be at least 2"),
        (lambda: scaling.BenchmarkArguments(steps=0), "must be at least 1"),
        (lambda: scaling.BenchmarkArguments(vocab_size=10), "--vocab_size is 10; it must be at least 11"),
        (lambda: scaling.BenchmarkArguments(vocab_size=51), "parallel.tensor 2 does not divide model.vocab_size 51"),
    ],
)
def test_impossible_flags(make, message):
    with pytest.raises(InputError, match=message):
        make()
