"""Conversions, quantising and exports refuse NaN and infinite values by name, unless --allow_nan is given."""

import sys

import numpy as np
import pytest

import export
from src.checkpoint.finite import count_not_finite
from src.checkpoint.reslice import reslice
from src.common.errors import InputError
from src.cpu.quantize import QuantizeArguments, quantize
from tests.support.checkpoints import BFLOAT16, plan, save_ranks, whole_values
from tests.support.conversion import SMALL, converted, mixed_values, read_checkpoint, write_checkpoint

BIAS, MATRIX = "backbone.blocks.1.attention.dense2.bias", "backbone.top_query_layer.output.mapping.weight"
BAD = {"NaN": (BIAS, np.nan), "infinity": (MATRIX, -np.inf)}


def single_values():
    return {name: values.astype(np.float32) for name, values in mixed_values().items()}


@pytest.fixture(params=BAD)
def bad(request, tmp_path):
    """Return a checkpoint with one bad value, and the name of its parameter."""
    name, value = BAD[request.param]
    values = single_values()
    values[name].flat[-1] = value
    return write_checkpoint(tmp_path / "bad.ckpt", values), name


def told(name):
    return (
        rf"'{name}' has 1 NaN or infinite values of [\d,]+, which .*: take an earlier checkpoint, or give --allow_nan"
    )


@pytest.mark.parametrize("to", ["mindspore", "safetensors", "megatron", "mindformers", "hf"])
def test_conversion(bad, tmp_path, to):
    source, name = bad
    with pytest.raises(InputError, match=told(name)):
        converted("mindspore", to, source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ckpt"]
    converted("mindspore", to, source, tmp_path / "new", allow_nan=True)


def test_a_cast_keeps_them_if_allowed(bad, tmp_path):
    source, name = bad
    with pytest.raises(InputError, match=told(name)):
        converted("mindspore", "mindspore", source, tmp_path / "new.ckpt", dtype="bfloat16")
    converted("mindspore", "mindspore", source, tmp_path / "new.ckpt", dtype="bfloat16", allow_nan=True)
    assert count_not_finite(read_checkpoint(tmp_path / "new.ckpt")[name]) == 1


@pytest.mark.parametrize("bits", [8, 4, 32])
def test_quantising(bad, tmp_path, bits):
    source, name = bad
    settings = {"num_heads": SMALL.num_heads, "bits": bits}
    with pytest.raises(InputError, match=told(name)):
        quantize(QuantizeArguments(str(source), str(tmp_path / "q"), **settings))
    assert not (tmp_path / "q").exists()
    if name == BIAS:
        quantize(QuantizeArguments(str(source), str(tmp_path / "q"), **settings, allow_nan=True))


def test_values_without_a_scale_do_not_become_zeros(tmp_path):
    values = single_values()
    values[MATRIX][:, 0] = np.resize([3e38, -3e38], len(values[MATRIX]))
    source = write_checkpoint(tmp_path / "large.ckpt", values)
    with (
        pytest.raises(InputError, match=f"'{MATRIX}' can't be quantised: .*values whose squares exceed"),
        np.errstate(all="ignore"),
    ):
        quantize(QuantizeArguments(str(source), str(tmp_path / "q"), num_heads=SMALL.num_heads, asymmetric=True))


def test_export(bad, tmp_path, monkeypatch):
    source, name = bad
    flags = ["--model.vocab_size=52", "--model.hidden_size=32", "--model.num_layers=3", "--model.num_heads=4"]
    where = [f"--checkpoint={source}", f"--output={tmp_path}/device0", "--model.seq_length=16"]
    monkeypatch.setattr(sys, "argv", ["export.py", *flags, *where])
    with pytest.raises(InputError, match=told(name)):
        export.main()
    assert not (tmp_path / "device0").exists()


def test_merge_and_split(tmp_path):
    values = whole_values()
    name = "adam_v." + "backbone.layernorm.gamma"
    values[name].flat[0] = np.inf
    source = save_ranks(tmp_path / "run", 4, values, plan(tensor=2))
    with pytest.raises(InputError, match=told(name)):
        reslice(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    reslice(source, tmp_path / "new", allow_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16, np.int32])
def test_counting(dtype):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(3000, 1500)).astype(np.float32)
    values.flat[draw.integers(0, values.size, 50)] = draw.choice([np.nan, np.inf, -np.inf, 65504, 1e-30, -0.0], 50)
    expected = int(np.count_nonzero(~np.isfinite(values))) if dtype is not np.int32 else 0
    with np.errstate(invalid="ignore"):
        given = values.astype(dtype)
    assert count_not_finite(given) == count_not_finite(given.T) == expected
    assert count_not_finite(np.float32(np.nan)[None][0:0]) == 0
    assert count_not_finite(np.array(np.nan, np.float32)) == 1
