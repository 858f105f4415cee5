"""The CPU engine against MindSpore and against the specification in numpy."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.cpu import packing
from src.cpu.quantize import write_weights
from src.cpu.runtime import CpuRuntime
from src.cpu.weight_file import WEIGHTS_FILE, Format, layout, matrices, total_bytes
from src.inference.loop import generate_tokens
from src.inference.manifest import Manifest
from src.inference.mindspore.runtime import CachedRuntime
from tests.support import numpy_pangu
from tests.support.programs import TINY, random_ids, random_model

CONFIG = replace(TINY, seq_length=48)
FORMATS = [
    Format(8, 128),
    Format(8, 32, asymmetric=True),
    Format(4, 32),
    Format(4, 16, asymmetric=True),
    Format(4, 64, table_bits=4),
]


def write_model(folder, config, weights, format):
    """Write a folder as `quantize` does, without a vocabulary."""
    folder.mkdir(exist_ok=True)
    write_weights(folder / WEIGHTS_FILE, config, format, weights.__getitem__)
    Manifest(config, "jieba", None, 9, 0, [], [], quantization=asdict(format)).write(folder)
    return folder


def rounded(weights, config, format):
    """Return the weights of a model after quantisation, in float32."""
    found = dict(weights)
    for matrix in matrices(config, format).values():
        for name in matrix.parameters:
            values = weights[name].T if matrix.transposed else weights[name]
            codes = packing.quantize(values, matrix.bits, format)
            values = packing.dequantize(*codes.values(), bits=matrix.bits, columns=values.shape[1])
            found[name] = values.T if matrix.transposed else values
    return found


@pytest.fixture(scope="module")
def model():
    return random_model(seed=3, seq_length=CONFIG.seq_length)


@pytest.fixture(scope="module")
def float_runtime(model, tmp_path_factory):
    return CpuRuntime(write_model(tmp_path_factory.mktemp("cpu") / "float", CONFIG, model[1], Format(32)), threads=1)


def prompts(lengths=(3, 17, 1)):
    draw = np.random.default_rng(0)
    return [draw.integers(10, 50, length).tolist() for length in lengths]


def generate(runtime, texts, **settings):
    config = GenerationConfig(**dict(max_new_tokens=32, end_token=9) | settings)
    return [[answer.tokens for answer in group] for group in generate_tokens(runtime, texts, config, 6)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(method="sample", seed=5, top_p=0.9, num_samples=2),
        dict(repetition_penalty=1.3),
        dict(method="beam", num_beams=3),
    ],
)
def test_float32_tokens_are_mindspore_s(model, float_runtime, settings):
    """Rows of different lengths are decoded together, and beams reorder the cache."""
    texts = prompts()[:1] if settings.get("method") == "beam" else prompts()
    tokens = generate(float_runtime, texts, **settings)
    assert tokens == generate(CachedRuntime(model[0]), texts, **settings)
    assert len({token for group in tokens for answer in group for token in answer}) > 2


def all_logits(runtime, ids):
    """Return logits (B, S, V). The first half of `ids` is read as a prompt, the rest one token at a time."""
    rows, length = ids.shape
    first = length // 2
    found = [runtime.prefill(ids[:, :first], np.full(rows, first), length)]
    for place in range(first, length):
        found.append(runtime.decode(ids[:, place], np.full(rows, place, np.int32)))
    return np.stack(found, 1), first - 1


@pytest.mark.parametrize("act", ["fast_gelu", "gelu"])
def test_float32_logits_are_the_specification_s(tmp_path, act):
    config = replace(TINY, hidden_act=act)
    _, weights = random_model(seed=6, hidden_act=act)
    ids = random_ids(2)[:, :24]
    positions, mask = np.tile(np.arange(24), (2, 1)), np.tril(np.ones((2, 24, 24)))
    found, first = all_logits(CpuRuntime(write_model(tmp_path / "m", config, weights, Format(32))), ids)
    expected = numpy_pangu.logits(weights, config, ids, positions, mask)
    assert np.abs(found - expected[:, first:]).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("cpu_kernels", [True, False])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_quantised_logits_are_those_of_the_rounded_weights(model, tmp_path, format, cpu_kernels):
    """They differ only because the inputs of each product are rounded to 8 bits."""
    weights = model[1]
    ids = random_ids(3)[:, :24]
    runtime = CpuRuntime(write_model(tmp_path / "m", CONFIG, weights, format), cpu_kernels=cpu_kernels)
    found, first = all_logits(runtime, ids)
    expected = numpy_pangu.logits(
        rounded(weights, CONFIG, format), CONFIG, ids, np.tile(np.arange(24), (3, 1)), np.tril(np.ones((3, 24, 24)))
    )[:, first:]
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 0.05


def test_rows_come_and_go(model, float_runtime):
    """A row starts a new text while others continue, and unused rows read token 0 at position 0."""
    [long, short, late] = prompts((9, 4, 12))
    alone = [generate(float_runtime, [text], max_new_tokens=3)[0][0] for text in (long, late)]
    float_runtime.open(3, CONFIG.seq_length)
    join = [
        float_runtime.join(np.array([text], np.int32), np.array([len(text)]), np.array([row])).argmax(-1)
        for row, text in ((2, long), (0, short))
    ]
    tokens, places = np.array([join[1][0], 0, join[0][0]], np.int32), np.array([4, 0, 9], np.int32)
    second = float_runtime.decode(tokens, places).argmax(-1)
    begun = float_runtime.join(np.array([late], np.int32), np.array([12]), np.array([1])).argmax(-1)
    third = float_runtime.decode(np.array([second[0], begun[0], second[2]], np.int32), places + [1, 12, 1]).argmax(-1)
    assert [join[0][0], second[2], third[2]] == alone[0]
    assert [begun[0], third[1]] == alone[1][:2]


def test_scores_are_the_specification_s(model, float_runtime):
    """The longest text has one token more than the position table has rows."""
    for size, start in ((2, 1), (20, 7), (CONFIG.seq_length + 1, CONFIG.seq_length)):
        tokens = np.array(prompts((size,)))
        mask = np.tril(np.ones((1, size - 1, size - 1)))
        logits = numpy_pangu.logits(model[1], CONFIG, tokens[:, :-1], np.arange(size - 1)[None], mask)
        expected = -numpy_pangu.token_losses(logits, tokens)[0, start - 1 :]
        assert np.allclose(float_runtime.score(tokens[0].tolist(), start), expected, atol=2e-4)
        told = np.concatenate(list(float_runtime.predictions(tokens[0].tolist(), start)))
        assert np.allclose(told, logits[0, start - 1 :], atol=2e-4)
    with pytest.raises(InputError, match="start is 0"):
        float_runtime.score([11, 12], 0)


def test_the_word_table_is_stored_once():
    for format in (Format(32), Format(8), Format(4)):
        stored = layout(TINY, format)
        tables = [name for name, tensor in stored.items() if tensor.shape[0] == TINY.vocab_size]
        assert len(tables) == (1 if format.bits == 32 else 2)  # codes and scales
        assert list(stored.values())[-1].offset < total_bytes(stored)
    assert (
        total_bytes(
            layout(
                replace(
                    TINY,
                    vocab_size=40000,
                    hidden_size=2560,
                    num_heads=32,
                    num_layers=32,
                    seq_length=1024,
                    ffn_hidden_size=10240,
                ),
                Format(8),
            )
        )
        < 2.8e9
    )


@pytest.mark.parametrize("changes", [dict(num_experts=2), dict(hidden_size=48, num_heads=4, ffn_hidden_size=192)])
def test_networks_that_the_engine_has_not(changes):
    with pytest.raises(InputError, match="can't be run by the engine for CPUs"):
        layout(replace(TINY, **changes), Format(8))
