"""The compiled kernel against ONNX Runtime on the same files, and when each of them is used."""

from dataclasses import replace

import numpy as np
import pytest

from src.cpu import machine
from src.cpu.kernel_network import KernelNetwork
from src.cpu.onnx_network import OnnxNetwork
from src.cpu.runtime import CpuRuntime
from src.cpu.weight_file import WEIGHTS_FILE, Format, layout
from src.cpu_kernels import build, threads
from src.inference.cache import Cache
from tests.cpu.test_engine import write_model
from tests.cpu.test_packing import restored, rms, saturating_product
from tests.support.programs import TINY, random_model

# Sizes of heads, blocks and vectors do not divide each other, and prompts are longer than one call of the kernel.
CONFIG = replace(TINY, hidden_size=72, num_heads=3, ffn_hidden_size=200, vocab_size=53, seq_length=300)
FORMATS = [Format(8, 128), Format(8, 16), Format(4, 32), Format(4, 256), Format(4, 16, table_bits=4)]

pytestmark = pytest.mark.skipif(not machine.has_kernel(), reason="the kernel has no products for this processor")


@pytest.fixture(autouse=True)
def little_work_is_done_by_all_threads(monkeypatch):
    monkeypatch.setattr(threads, "PRODUCTS_OF_A_THREAD", 1)


@pytest.fixture(scope="module", params=FORMATS, ids=str)
def folder(request, tmp_path_factory):
    sizes = {
        name: getattr(CONFIG, name)
        for name in ("hidden_size", "num_heads", "ffn_hidden_size", "vocab_size", "seq_length")
    }
    return write_model(tmp_path_factory.mktemp("kernel") / "m", CONFIG, random_model(seed=7, **sizes)[1], request.param)


def both(folder, threads=2):
    """Return the runtime with the kernel and the one with ONNX Runtime."""
    kernel, onnx = CpuRuntime(folder, threads), CpuRuntime(folder, threads, cpu_kernels=False)
    assert isinstance(kernel.network, KernelNetwork) and isinstance(onnx.network, OnnxNetwork)
    return kernel, onnx


def draw(*shape):
    return np.random.default_rng(shape).integers(10, CONFIG.vocab_size, shape, dtype=np.int32)


def errors(ours, theirs):
    """Return the relative error of each text or token."""
    assert ours.shape == theirs.shape
    return np.sqrt(np.mean((ours - theirs) ** 2, -1) / np.mean(theirs**2, -1)).reshape(-1)


def assert_near(ours, theirs):
    """Check that logits differ only by the order of sums.

    An input on the border of two codes may be rounded differently. All tokens after it differ more then.
    """
    assert errors(ours, theirs).max() < 0.05
    assert errors(ours, theirs)[:4].min() < 1e-5


@pytest.mark.parametrize("length", [1, 2, 5, 8, 9, 16, 33, 257, 290])
def test_prompts(folder, length):
    """The lengths cover part of a tile, one tile, pairs of tiles, and more tokens than a call takes."""
    kernel, onnx = both(folder)
    text = draw(length)
    ours = kernel.logits(text)
    assert_near(ours, onnx.logits(text))
    assert errors(kernel.logits(text, length // 2), ours[length // 2 :]).max() < 1e-5


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 21])
def test_tokens_after_prompts_of_different_lengths(folder, rows):
    runtimes = both(folder)
    lengths = np.arange(rows) * 7 % 30 + 1
    found = [[runtime.prefill(draw(rows, 30), lengths, 40)] for runtime in runtimes]
    for step in range(3):
        for runtime, logits in zip(runtimes, found, strict=True):
            logits.append(runtime.decode(draw(rows, 3)[:, step], (lengths + step).astype(np.int32)))
    assert_near(np.stack(found[0]), np.stack(found[1]))


def test_a_row_is_what_it_is_alone(folder):
    """A row gives the same logits to the last bit whatever other rows are decoded, few or many."""
    kernel, _ = both(folder)
    texts, lengths = draw(9, 20), np.full(9, 20)
    kernel.prefill(texts, lengths, 40)
    together = kernel.decode(texts[:, 0], np.full(9, 20, np.int32))
    for count in (1, 2, 3, 4, 5):
        for rows in np.split(np.arange(9), range(count, 9, count)):
            kernel.join(texts[rows], lengths[rows], rows)
            some = kernel.decode(texts[rows, 0], np.full(len(rows), 20, np.int32), rows)
            np.testing.assert_array_equal(some, together[rows])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_that_saturates_elsewhere(bits, tmp_path):
    """See test_packing. All weights except the head's are 0, so the input of the head is the last LayerNorm's beta."""
    draw = np.random.default_rng(3)
    x, table = draw.uniform(0.8, 1, 256).astype(np.float32), draw.uniform(0.8, 1, (96, 256)).astype(np.float32)
    table[::2] *= -1
    sizes = dict(hidden_size=256, ffn_hidden_size=256, vocab_size=96)
    weights = {name: np.zeros_like(value) for name, value in random_model(**sizes)[1].items()}
    weights |= {"backbone.embedding.word_embedding.embedding_table": table, "backbone.layernorm.beta": x}
    format = Format(bits, 32, table_bits=bits)
    kernel, _ = both(write_model(tmp_path / "m", replace(TINY, **sizes), weights, format))
    expected = restored(table, bits, format) @ x
    assert rms(saturating_product(x[None], table)[0] - table @ x, table @ x) > 0.15
    for tokens in (1, 20):
        assert rms(kernel.logits(np.arange(10, 10 + tokens))[-1] - expected, expected) < 0.005


@pytest.mark.parametrize("count", [1, 3, 5])
def test_threads_change_nothing(folder, count):
    text = draw(40)
    assert (CpuRuntime(folder, count).logits(text) == CpuRuntime(folder, 2).logits(text)).all()


@pytest.mark.parametrize("length", [1, 5, 20])
def test_what_lies_between_the_tensors_is_no_matter(folder, length):
    """Vector instructions read beyond the last row of a matrix and its scales, where anything may lie, such as NaN."""
    runtime = CpuRuntime(folder, 2)
    stored = layout(runtime.config, runtime.format)
    whole = np.fromfile(folder / WEIGHTS_FILE, np.uint8)
    filled = np.full_like(whole, 255)
    for tensor in stored.values():
        held = slice(tensor.offset, tensor.offset + tensor.nbytes)
        filled[held] = whole[held]
    words = np.random.default_rng(0).normal(size=(length, CONFIG.hidden_size)).astype(np.float32)
    found = [
        KernelNetwork(build.library(), data, stored, runtime.config, runtime.format, 2).read(
            words, Cache(runtime.config, 1, length), 0, range(length)
        )
        for data in (whole, filled)
    ]
    assert np.isfinite(found[0]).all() and (found[0] == found[1]).all()


INSTRUCTIONS = {"AVX-VNNI": ["-mno-avx512f", "-mavxvnni"], "AVX2": ["-march=x86-64-v3"]}


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_with_other_instructions(folder, instructions, monkeypatch, tmp_path_factory):
    """Other instructions give the same result."""
    flags = machine.CPU_INFO.read_text()
    if instructions == "AVX-VNNI" and "avx_vnni" not in flags:
        pytest.skip("this processor has no AVX-VNNI")
    text, native = draw(60), CpuRuntime(folder, 2)
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, *INSTRUCTIONS[instructions]])
    needed = [path for path in build.SOURCES if path.stem in ("instructions", "quantized")]
    monkeypatch.setattr(build, "SOURCES", needed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / instructions))
    other = CpuRuntime(folder, 2)
    assert isinstance(other.network, KernelNetwork)
    for count in (60, 1):
        assert_near(other.logits(text[:count]), native.logits(text[:count]))


@pytest.mark.parametrize("act", ["fast_gelu", "gelu"])
def test_activations(tmp_path, act):
    config = replace(TINY, hidden_act=act)
    kernel, onnx = both(write_model(tmp_path / "m", config, random_model(seed=6, hidden_act=act)[1], Format(8, 32)))
    assert_near(kernel.logits(draw(20) % 40 + 10), onnx.logits(draw(20) % 40 + 10))


@pytest.mark.parametrize("format", [Format(32), Format(8, asymmetric=True), Format(4, table_bits=32)], ids=str)
def test_formats_for_onnx_runtime(tmp_path, format):
    folder = write_model(tmp_path / "m", TINY, random_model(seed=6)[1], format)
    assert isinstance(CpuRuntime(folder).network, OnnxNetwork)


@pytest.mark.parametrize(
    "flags, network",
    [("fpu avx2", KernelNetwork), ("fpu avx2 avx_vnni", KernelNetwork), ("fpu avx2 avx512f", OnnxNetwork)],
    ids=str,
)
def test_which_processors_use_the_kernel(flags, network, folder, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert isinstance(CpuRuntime(folder).network, network)


def test_without_a_compiler(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "COMPILER", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert isinstance(CpuRuntime(folder).network, OnnxNetwork)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "so ONNX Runtime's, which are slower" in error
