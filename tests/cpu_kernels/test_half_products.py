"""Products in bfloat16: rounding and sums against float64, gradients against golden ones, and whole runs."""

import shutil
from functools import partial

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops
from mindspore.common import np_dtype

from src.common.cli import parse
from src.common.errors import InputError
from src.cpu_kernels import build, cells, onednn
from src.cpu_kernels.attach import attach_half_products, has_half_products
from src.inference.mindspore.load import build_runtime, open_run
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.training.config import TrainConfig
from tests.support.distributed_runs import weights
from tests.support.programs import ROOT, metrics, random_ids, random_model, run, train_flags, write_mindrecord

TRAIN, IN_HALF = ROOT / "train.py", "--model.compute_dtype=bfloat16"
GOLDEN = ROOT / "tests/golden"
UNIT = 2.0**-8  # largest relative error of rounding to bfloat16


@pytest.fixture(scope="module")
def library():
    path = build.library()
    if path is None:
        pytest.skip("no compiler here")
    if not onednn.has_half_gemm(path):
        pytest.skip("this processor has neither AVX-512 BF16 nor AMX")
    return path


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def rounded(x):
    """Round to the nearest bfloat16, ties to even, and return float64."""
    bits = x.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return np.where(np.isnan(x), np.float32(np.nan), nearest.astype(np.uint32).view(np.float32)).astype(np.float64)


def product(library, a, b, transpose_a=False, transpose_b=False):
    return cells.HalfProduct(library, transpose_a, transpose_b)(Tensor(a), Tensor(b)).asnumpy()


def test_operands_are_rounded_to_nearest_even(library):
    """A product with 1 returns the rounded number."""
    ties = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    x = np.concatenate(
        [ties, np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(0)), normal(3000), -ties]
    )
    x = np.concatenate([x, normal(500) * np.float32(1e-30), normal(500) * np.float32(1e37)])
    ours = product(library, x[:, None], np.ones((1, 1), np.float32))[:, 0]
    np.testing.assert_array_equal(ours, rounded(x))
    np.testing.assert_array_equal(ours, x.astype(np_dtype.bfloat16).astype(np.float32))


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000])
def test_nan_stays_nan_and_too_large_is_infinite(library, bits):
    """The overflow check of training relies on this."""
    nan = np.array([[bits]], np.uint32).view(np.float32)
    one = np.ones((1, 1), np.float32)
    assert np.isnan(product(library, nan, one)) and np.isnan(product(library, one, nan))
    assert np.isinf(product(library, np.full((1, 1), 3.4e38, np.float32), one))


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("rows, columns, inner", [(1, 1, 1), (3, 5, 7), (130, 33, 517), (257, 700, 64)])
@pytest.mark.parametrize("kind", [cells.Product, cells.HalfProduct])
def test_products_and_their_gradients(library, kind, transpose_a, transpose_b, rows, columns, inner):
    assert onednn.has_gemm(library)
    seen = rounded if kind is cells.HalfProduct else partial(np.asarray, dtype=np.float64)
    a, b = normal(rows, inner), normal(inner, columns, seed=1)
    a, b = (np.ascontiguousarray(x.T) if flip else x for x, flip in ((a, transpose_a), (b, transpose_b)))
    dout = normal(rows, columns, seed=2)
    cell = kind(library, transpose_a, transpose_b)
    ours = [
        cell(Tensor(a), Tensor(b)),
        *ops.GradOperation(get_all=True, sens_param=True)(cell)(*map(Tensor, (a, b, dout))),
    ]
    left, right, above = seen(a), seen(b), seen(dout)
    left, right = left.T if transpose_a else left, right.T if transpose_b else right
    of_a, of_b = above @ right.T, left.T @ above
    for found, truth in zip(
        ours, (left @ right, of_a.T if transpose_a else of_a, of_b.T if transpose_b else of_b), strict=True
    ):
        assert found.asnumpy().dtype == np.float32
        np.testing.assert_allclose(found.asnumpy(), truth, rtol=0, atol=2e-6 * np.abs(truth).max())


def test_a_product_does_not_depend_on_the_number_of_threads(library):
    """Other processors may do fewer rows at a time, but each number is the same sum."""
    a, b = normal(300, 400), normal(400, 500, seed=1)
    whole = product(library, a, b)
    np.testing.assert_array_equal(np.concatenate([product(library, a[:150], b), product(library, a[150:], b)]), whole)


def golden_gradients(in_half):
    """Return the gradients of the model of tests/golden, by name."""
    config = PanguAlphaConfig(160, 32, 3, 4, 48, dropout_rate=0.0, eod_token=8)
    model = PanguAlphaModel(config)
    with np.load(GOLDEN / "weights.npz") as weights:
        for parameter in model.get_parameters():
            parameter.set_data(Tensor(weights[parameter.name]))
    if in_half:
        assert attach_half_products(model)
    assert has_half_products([model]) == in_half
    parameters = ParameterTuple(model.trainable_params())
    with np.load(GOLDEN / "peer.npz") as peer:
        batch = [Tensor(peer[name]) for name in ("ids", "position_ids", "attention_mask")]
    found = ops.GradOperation(get_by_list=True)(PanguAlphaWithLoss(config, model), parameters)(*batch)
    return {one.name: value.asnumpy() for one, value in zip(parameters, found, strict=True)}


def test_gradients_are_the_golden_ones_within_rounding(library):
    ours = golden_gradients(in_half=True)
    with np.load(GOLDEN / "gradients.npz") as golden:
        errors = {
            name: np.linalg.norm(value - golden[name]) / np.linalg.norm(golden[name])
            for name, value in ours.items()
            if "dense2.bias" not in name  # the softmax cancels it, so its gradient is rounding noise
        }
    assert max(errors.values()) < 10 * UNIT, errors
    assert np.median(list(errors.values())) > UNIT / 10  # the products are indeed rounded


def test_all_products_of_a_model_are_replaced(library):
    model, _ = random_model(num_layers=3)
    assert attach_half_products(model)
    assert sum(isinstance(cell, cells.HalfProduct) for _, cell in model.cells_and_names()) == 3 * 6 * 3 + 1


@pytest.mark.parametrize("missing", ["isa", "symbol", "library"])
def test_without_bfloat16_one_line_says_so(missing, monkeypatch, capsys):
    if missing == "isa":
        monkeypatch.setattr(onednn, "BFLOAT16", 1 << 30)
    elif missing == "symbol":
        monkeypatch.setattr(onednn, "HALF_GEMM", "dnnl_no_such_function")
    else:
        monkeypatch.setattr(onednn, "ONEDNN", onednn.ONEDNN.with_name("libnone.so"))
    assert not onednn.has_half_gemm.__wrapped__(build.library())
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("warning: products are computed in float32, not bfloat16: ")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "train.mindrecord"
    write_mindrecord(file, random_ids(27))
    return file


def flags(data, output, *more, steps=30):
    settings = dict(steps=steps, decay_steps=30, learning_rate=5e-3, save_interval=10, keep_checkpoints=9)
    return [TRAIN, *train_flags(data, output, loss_scale=1024.0, **settings), *more]


@pytest.fixture(scope="module")
def in_half(library, data, tmp_path_factory):
    """Return the folder and the output of a run in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    status, output, errors = run(*flags(data, folder, IN_HALF))
    assert status == 0 and "products in bfloat16" in output and "warning" not in errors, errors
    return folder


@pytest.fixture(scope="module")
def in_full(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    status, output, errors = run(*flags(data, folder))
    assert status == 0 and "products" not in output, errors
    return folder


def losses(folder):
    return np.array([line["loss"] for line in metrics(folder)])


def test_training_goes_as_in_float32(in_half, in_full):
    half, full = losses(in_half), losses(in_full)
    assert half[-5:].mean() < half[0] - 0.1
    np.testing.assert_allclose(half, full, rtol=0.01)
    assert (half != full).any()


def test_a_resumed_run_is_the_same_to_the_bit(in_half, data, tmp_path):
    """The checkpoint holds float32 weights, so nothing is lost when a run stops."""
    folder = tmp_path / "run"
    shutil.copytree(in_half / "checkpoint/step_00000010", folder / "checkpoint/step_00000010")
    status, _, errors = run(*flags(data, folder, IN_HALF))
    assert status == 0, errors
    np.testing.assert_array_equal(losses(folder), losses(in_half)[10:])
    resumed, whole = weights(folder), weights(in_half)
    assert {value.dtype for value in resumed.values()} == {np.dtype(np.float32)}
    assert all((value == whole[name]).all() for name, value in resumed.items())


def test_a_processor_without_bfloat16_computes_in_float32(in_full, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")  # oneDNN then takes no instruction for bfloat16
    status, output, errors = run(*flags(data, tmp_path, IN_HALF))
    assert status == 0 and "products in float32" in output
    assert [line for line in errors.splitlines() if "warning" in line] == [
        "warning: products are computed in float32, not bfloat16: this processor has neither AVX-512 BF16 nor AMX"
    ]
    np.testing.assert_allclose(losses(tmp_path), losses(in_full), rtol=1e-5)


def test_recompute_changes_no_loss(in_half, data, tmp_path):
    status, output, _ = run(*flags(data, tmp_path, IN_HALF, "--parallel.recompute=full"))
    assert status == 0 and "products in bfloat16" in output
    np.testing.assert_array_equal(losses(tmp_path), losses(in_half)[: len(losses(tmp_path))])


def test_without_kernels_one_line_says_so(data, tmp_path):
    status, output, errors = run(*flags(data, tmp_path, IN_HALF, "--parallel.cpu_kernels=false", steps=1))
    assert status == 0 and "products in float32" in output
    assert "warning: products are computed in float32, not bfloat16: that needs parallel.cpu_kernels true" in errors


def test_a_run_in_bfloat16_answers_in_float32_on_a_cpu(in_half):
    opened = open_run(in_half)
    assert opened.config.model.compute_dtype == "bfloat16"
    model = PanguAlphaModel(opened.config.graph_model)
    saved = weights(in_half)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(saved[parameter.name]))
    ids, lengths = random_ids(2)[:, :9], np.full(2, 9, np.int32)
    ours, expected = (runtime.prefill(ids, lengths, 16) for runtime in (opened.runtime, build_runtime(model)))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["param_init_dtype", "softmax_compute_dtype"])
def test_weights_and_softmax_in_bfloat16_are_refused(name):
    flag = f"--model.{name}=bfloat16"
    with pytest.raises(InputError, match=f"model.{name} is bfloat16.* give --model.{name} float32"):
        parse(TrainConfig, "train.py", ["--mode=tiny", flag])
    for other in ("--parallel.device_target=Ascend", "--dry_run", "--plan"):
        assert getattr(parse(TrainConfig, "train.py", ["--mode=tiny", flag, other]).model, name) == "bfloat16"


def test_only_a_cpu_has_another_graph_than_the_settings_say():
    config = parse(TrainConfig, "train.py", ["--mode=tiny", IN_HALF])
    assert config.has_half_products and config.graph_model.compute_dtype == "float32"
    config = parse(TrainConfig, "train.py", ["--mode=tiny", IN_HALF, "--parallel.device_target=Ascend"])
    assert not config.has_half_products and config.graph_model is config.model
