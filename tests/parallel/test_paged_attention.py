"""Attention by Ascend's operators, which are emulated here by their documented formulas (tests/support)."""

import inspect

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.ops import auto_generate

from src.common.cli import parse
from src.common.settings import GenerationConfig
from src.inference.config import PredictConfig
from src.inference.loop import generate_tokens
from src.inference.mindspore.load import build_runtime
from src.parallel.paged_attention import PagedCache, PagedPlaces
from tests.support.ascend_operators import EMULATIONS, emulate
from tests.test_pangu_alpha import CONFIG, PEER, golden_model, largest  # noqa: F401

HEADS, SIZE, ROWS, CAPACITY = 3, 8, 3, 40  # a capacity that is no multiple of a block


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    emulate(monkeypatch.setattr)


@pytest.mark.parametrize("emulation", EMULATIONS)
def test_an_emulation_takes_what_the_operator_takes(emulation):
    operator = getattr(auto_generate, emulation.__name__)
    assert inspect.signature(emulation.__init__) == inspect.signature(operator.__init__)
    inputs = [name for name in inspect.signature(emulation.construct).parameters if name != "others"]
    assert inputs == list(inspect.signature(operator.__call__).parameters)[: len(inputs)]


HALF = ["--dry_run", "--mode=tiny", "--parallel.device_target=Ascend", "--model.compute_dtype=bfloat16"]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], False),  # no device says what it is
        (["--parallel.chip=910A"], False),
        (["--parallel.chip=A2"], True),
        (["--parallel.chip=A3"], True),
        (["--parallel.attention=flash"], True),
        (["--parallel.chip=A2", "--parallel.attention=plain"], False),
        (["--parallel.chip=A2", "--model.compute_dtype=float32"], False),
        (["--parallel.chip=A2", "--generation.use_past=false"], False),
        (["--parallel.chip=A2", "--model.hidden_size=1024", "--model.num_heads=2"], False),  # heads of 512
    ],
    ids=str,
)
def test_generation_follows_chip_and_settings(flags, expected):
    assert parse(PredictConfig, "predict.py", [*HALF, *flags]).has_flash_generation == expected


def numpy_attention(query, keys, values):
    """Return the attention of one token, (A, d), to T tokens, (T, A, d) each."""
    scores = np.einsum("ad,tad->at", query, keys) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("at,tad->ad", weights / weights.sum(-1, keepdims=True), values)


def test_tokens_attend_to_their_row_up_to_themselves():
    """Prompts of rows 2 and 0 come first, then one of row 1; then tokens of all rows, each at its own position."""
    draw = np.random.default_rng(0)
    cache = PagedCache(HEADS, SIZE, ROWS, CAPACITY, ms.float32, "0")
    places = PagedPlaces(CAPACITY)
    texts = [(np.zeros((0, HEADS, SIZE)), np.zeros((0, HEADS, SIZE))) for _ in range(ROWS)]

    def attend(rows, positions, tokens):
        q, k, v = (draw.normal(size=(len(rows), tokens, HEADS, SIZE)).astype(np.float32) for _ in range(3))
        ids = np.array(positions)[:, None] + np.arange(tokens)
        where = places(Tensor(ids, ms.int32), Tensor(rows, ms.int32))
        found = cache(where, *(Tensor(x.reshape(len(rows) * tokens, -1)) for x in (q, k, v))).asnumpy()
        found = found.reshape(q.shape)
        for number, (row, begin) in enumerate(zip(rows, positions, strict=True)):
            keys, values = (
                np.concatenate([old[:begin], new[number]]) for old, new in zip(texts[row], (k, v), strict=True)
            )
            texts[row] = keys, values
            for step in range(tokens):
                seen = begin + step + 1
                expected = numpy_attention(q[number, step], keys[:seen], values[:seen])
                np.testing.assert_allclose(found[number, step], expected, atol=1e-5)

    attend([2, 0], [0, 0], 16)
    attend([1], [0], 32)
    attend([0, 1, 2], [5, 32, 16], 1)  # row 0 has a prompt of five tokens, and padding that is written over
    attend([0, 1, 2], [6, 33, 17], 1)
    attend([0, 1, 2], [7, 34, 18], 1)


def test_golden_logits_by_prefill_and_decode(golden_model):  # noqa: F811
    """Both rows of the golden batch, from prompts of different lengths on."""
    runtime = build_runtime(golden_model, flash=True)
    ids, lengths = PEER["ids"], np.array([7, 20])
    logits = runtime.prefill(ids[:, :20], lengths, CONFIG.seq_length)
    for step in range(22):
        last = lengths + step - 1
        assert largest(logits - PEER["eval_logits"][[0, 1], last]) < 1e-4
        logits = runtime.decode(ids[[0, 1], last + 1], lengths + step)


def test_greedy_tokens_are_the_peer_s(golden_model):  # noqa: F811
    config = GenerationConfig(max_new_tokens=len(PEER["greedy"]), end_token=CONFIG.vocab_size - 1)
    prompt = PEER["ids"][0, :7].tolist()
    [[answer]] = generate_tokens(build_runtime(golden_model, flash=True), [prompt], config, CONFIG.pad_token)
    assert answer.tokens == PEER["greedy"].tolist()
