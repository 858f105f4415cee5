"""Quantised matrices: their error, and products that can't overflow on a processor without VNNI."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from src.cpu import packing
from src.cpu.onnx_runtime import ort
from src.cpu.weight_file import Format


def matrix(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def restored(values, bits, format):
    return packing.dequantize(*packing.quantize(values, bits, format).values(), bits=bits, columns=values.shape[1])


def rms(difference, values):
    return np.sqrt(np.mean(difference**2) / np.mean(values**2))


@pytest.mark.parametrize(
    ("bits", "asymmetric", "most"), [(8, False, 0.008), (8, True, 0.007), (4, False, 0.098), (4, True, 0.092)]
)
@pytest.mark.parametrize("columns", [64, 96, 100])
def test_what_rounding_costs(bits, asymmetric, most, columns):
    values = matrix(700, columns)
    assert rms(restored(values, bits, Format(bits, 32, asymmetric)) - values, values) < most


@pytest.mark.parametrize("asymmetric", [False, True])
def test_values_of_the_grid_come_back(asymmetric):
    """Some blocks hold only zeros, or numbers of one sign."""
    codes = np.random.default_rng(1).integers(-8, 8, (5, 64)).astype(np.float32)
    codes[:, 0], codes[:, 1] = -8, 7
    codes[1], codes[2] = 0, np.abs(codes[2])
    codes[:, 32:] = codes[:, :32]
    found = restored(codes, 4, Format(4, 32, asymmetric))
    assert np.allclose(np.delete(found, 2, 0), np.delete(codes, 2, 0), atol=1e-5)
    assert rms(found[2] - codes[2], codes[2]) < 0.08


def test_smaller_blocks_lose_less():
    values = matrix(64, 256) * np.random.default_rng(2).lognormal(size=(64, 256))
    errors = [rms(restored(values, 4, Format(4, size)) - values, values) for size in (16, 32, 64, 128, 256)]
    assert errors == sorted(errors)


def product(x, values, bits, format):
    """Multiply x by a quantised matrix with ONNX Runtime's kernel for this machine."""
    stored = packing.quantize(values, bits, format)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weights", "scales"],
        ["y"],
        domain="com.microsoft",
        K=values.shape[1],
        N=len(values),
        bits=bits,
        block_size=format.block_size,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), len(values)])],
        [numpy_helper.from_array(part, name) for name, part in stored.items()],
    )
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    )
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def saturating_product(x, values):
    """Multiply as the instruction VPMADDUBSW does, with unsigned inputs and signed weights of 8 bits.

    It adds pairs of products in 16 bits with saturation.
    """
    step = np.abs(x).max() / 127
    unsigned = np.rint(x / step).astype(np.int64) + 128
    scales = np.abs(values).max(1, keepdims=True) / 127
    signed = np.rint(values / scales).astype(np.int64)
    products = unsigned[:, None] * signed[None]  # (M, N, K)
    pairs = np.clip(products.reshape(*products.shape[:2], -1, 2).sum(-1), -32768, 32767)
    return (pairs.sum(-1) - 128 * signed.sum(1)) * step * scales.T


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_that_saturates_elsewhere(bits):
    """With large values of one sign, a plain product of 8-bit numbers saturates and is wrong. Ours is right."""
    draw = np.random.default_rng(3)
    x, values = draw.uniform(0.8, 1, (4, 256)).astype(np.float32), draw.uniform(0.8, 1, (96, 256)).astype(np.float32)
    values[::2] *= -1
    format = Format(bits, 32)
    expected = x @ restored(values, bits, format).T
    assert rms(saturating_product(x, values) - x @ values.T, x @ values.T) > 0.15
    assert rms(product(x, values, bits, format) - expected, expected) < 0.005
