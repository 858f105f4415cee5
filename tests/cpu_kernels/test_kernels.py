"""Compare each kernel with float64 NumPy or its plain cell, and a training step with and without kernels."""

from dataclasses import astuple, replace

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.common.settings import TrainingConfig
from src.cpu_kernels import build, cells, threads
from src.cpu_kernels.attach import attach_to_training, token_decoder
from src.dataset import documents_of
from src.inference.mindspore.load import build_runtime
from src.nn import operators, optimizer
from src.nn.dropout import dropout_keys
from src.nn.optimizer import Optimizer, StepScalars
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_wrapcell import ApplyGradients, GlobalNorm, Stepper
from src.parallel.recompute import recompute_layers
from tests.support.programs import TINY, random_ids, random_model

TINIEST = 1e-37  # kernels treat smaller numbers as 0
TRAINING = TrainingConfig(learning_rate=1e-2, end_learning_rate=1e-2, warmup_steps=0, steps=9)


def normal(*shape, scale=1.0, seed=0):
    return np.random.default_rng([seed, *shape]).normal(0, scale, shape).astype(np.float32)


def gradients(cell, inputs, dout):
    """Return the output of a cell and the gradients of all its inputs."""
    tensors = [Tensor(x) for x in inputs]
    given = ops.GradOperation(get_all=True, sens_param=True)(cell)(*tensors, Tensor(dout))
    return cell(*tensors).asnumpy(), [x.asnumpy() for x in given]


def assert_near(ours, truth, rtol=2e-6):
    """Check that the difference is at most rtol times the largest value."""
    assert ours.dtype == np.float32 and ours.shape == truth.shape
    np.testing.assert_allclose(ours, truth, rtol=0, atol=rtol * np.abs(truth).max() + TINIEST)


def assert_alike(kernel, plain, inputs, wanted, rtol=2e-6):
    """Check that the outputs and the first `wanted` gradients agree."""
    dout = normal(*plain(*map(Tensor, inputs)).shape, seed=9)
    (output, given), (expected, truth) = gradients(kernel, inputs, dout), gradients(plain, inputs, dout)
    for ours, theirs in zip([output, *given[:wanted]], [expected, *truth[:wanted]], strict=True):
        assert_near(ours, theirs, rtol)


@pytest.mark.parametrize("rows, width", [(1, 5), (3, 7), (130, 517)])
def test_normalize(library, rows, width):
    inputs = normal(rows, width, scale=3.0) + 1, normal(width, seed=1), normal(width, seed=2)
    assert_alike(cells.Normalize(library, 1e-5), operators.Normalize(1e-5), inputs, wanted=3, rtol=1e-5)


@pytest.mark.parametrize("rows, width", [(1, 1), (5, 3), (70, 611)])
def test_biased_fast_gelu(library, rows, width):
    x, bias, dout = normal(rows, width, scale=8.0), normal(rows, seed=1), normal(rows, width, seed=2)
    x[0, 0] = -300.0  # the sigmoid of it underflows in float32
    output, (dx, dbias) = gradients(cells.BiasedFastGelu(library), [x, bias], dout)
    y = (x + bias[:, None]).astype(np.float64)
    gate = 1 / (1 + np.exp(-1.702 * y))
    slope = dout * gate * (1 + 1.702 * y * (1 - gate))
    for ours, truth in ((output, y * gate), (dx, slope), (dbias, slope.sum(1))):
        assert_near(ours, truth)


@pytest.mark.parametrize("rows, classes", [(1, 2), (5, 17), (33, 9001)])
def test_cross_entropy(library, rows, classes):
    logits, dout = normal(rows, classes, scale=9.0), normal(rows, seed=1)
    labels = np.random.default_rng(2).integers(0, classes, rows).astype(np.int32)
    output, (dlogits, _) = gradients(cells.CrossEntropy(library), [logits, labels], dout)
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    truth = (np.exp(log_softmax) - np.eye(classes)[labels]) * dout[:, None]
    np.testing.assert_allclose(output, -log_softmax[np.arange(rows), labels], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(dlogits, truth, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(library, bad):
    """The overflow check relies on this: it looks at the norm only."""
    x = normal(3, 40)
    x[1, 3] = bad
    rows, flat = np.zeros(3, np.float32), np.zeros(40, np.float32)
    outputs = [
        cells.Normalize(library, 1e-5)(Tensor(x), Tensor(flat + 1), Tensor(flat)),
        cells.BiasedFastGelu(library)(Tensor(x), Tensor(rows)),
        cells.CrossEntropy(library)(Tensor(x), Tensor(np.zeros(3, np.int32))),
        cells.GlobalNorm(library)((Tensor(x),)),
    ]
    assert [bool(np.isfinite(output.asnumpy()).all()) for output in outputs] == [False] * 4


def test_global_norm(library):
    values = [normal(*shape) for shape in ((), (3, 4), (70_001,), (2, 3, 4))]
    kernel, plain = cells.GlobalNorm(library), GlobalNorm()
    for scale in (1e-3, 1e15, 1e18):
        scaled = [value * np.float32(scale) for value in values]
        truth = np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in scaled)) if scale < 1e18 else np.inf
        tensors = tuple(map(Tensor, scaled))
        assert float(kernel(tensors)) == pytest.approx(truth, rel=1e-7)
        assert float(plain(tensors)) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("powers", [(0.0, 0.0), (0.9**3, 0.95**3)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_update(library, powers, decay):
    class Step(nn.Cell):
        def __init__(self, update):
            super().__init__()
            self.update = update
            self.p, self.m, self.v = (
                Parameter(Tensor(value), name=name)
                for name, value in (
                    ("p", normal(301, 157)),
                    ("m", normal(301, 157, seed=1)),
                    ("v", normal(301, 157, seed=2) ** 2),
                )
            )

        def construct(self, gradient, factor, lr, beta1_power, beta2_power):
            return ops.depend(
                lr, self.update(factor, lr, beta1_power, beta2_power, decay, self.p, self.m, self.v, gradient)
            )

    settings = TRAINING.beta1, TRAINING.beta2, TRAINING.epsilon
    steps = Step(cells.AdamUpdate(library, *settings)), Step(optimizer.AdamUpdate(TRAINING))
    for number in range(2):
        for step in steps:
            step(Tensor(normal(301, 157, seed=number + 3)), *(Tensor(np.float32(x)) for x in (0.25, 0.01, *powers)))
    for ours, plain in zip(*(step.get_parameters() for step in steps), strict=True):
        np.testing.assert_allclose(ours.asnumpy(), plain.asnumpy(), rtol=2e-6, atol=1e-6)


class Steps:
    """A tiny model with a stepper over two micro-batches, with or without kernels."""

    def __init__(self, with_kernels, name="adam_weight_decay", recompute="none", **changes):
        self.model, _ = random_model(seed=1, num_layers=2, dropout_rate=0.1, **changes)
        parameters = self.model.trainable_params()
        self.network = PanguAlphaWithLoss(self.model.config, self.model)
        self.optimizer = Optimizer(replace(TRAINING, optimizer=name), parameters)
        apply_gradients = ApplyGradients(self.optimizer, 1.0, micro_batches=2)
        self.stepper = Stepper(self.network, parameters, apply_gradients)
        self.attached = with_kernels and attach_to_training(self.network, apply_gradients)
        recompute_layers(self.model, recompute)

    def take(self, number, scale=1024.0):
        """Return the loss, the norm and whether it is finite."""
        ids = random_ids(2, seed=number)
        batch = [
            Tensor(ids),
            *map(Tensor, documents_of(ids, TINY.eod_token)),
            None,
            Tensor(dropout_keys(0, number, 0, len(ids))),
        ]
        return astuple(self.stepper.train(scale, StepScalars.at(TRAINING, number, number), [batch, batch]))

    def state(self):
        return {p.name: p.asnumpy().copy() for p in [*self.model.get_parameters(), *self.optimizer.state]}


def test_a_whole_step(library):
    ours, plain = Steps(True), Steps(False)
    assert ours.attached and list(ours.state()) == list(plain.state())
    for number in range(2):
        assert ours.take(number) == pytest.approx(plain.take(number), rel=1e-5)
    for (name, value), expected in zip(ours.state().items(), plain.state().values(), strict=True):
        if "dense2.bias" not in name:  # the softmax cancels it, so its gradient is rounding noise
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_steps_repeat_and_an_overflow_changes_nothing(library):
    steppers = Steps(True), Steps(True)
    assert steppers[0].take(0) == steppers[1].take(0)
    before = steppers[0].state()
    assert all((value == before[name]).all() for name, value in steppers[1].state().items())
    *_, finite = steppers[0].take(1, scale=3e38)
    assert finite is False
    assert all((value == before[name]).all() for name, value in steppers[0].state().items())


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_recompute_changes_no_bit(library, kind):
    plain, saving = Steps(True), Steps(True, recompute=kind)
    for number in range(2):
        assert saving.take(number) == plain.take(number)
    before = plain.state()
    assert all((value == before[name]).all() for name, value in saving.state().items())


@pytest.mark.parametrize("dtype", ["compute_dtype", "softmax_compute_dtype", "param_init_dtype"])
def test_other_dtypes_keep_the_plain_cells(library, dtype):
    steps = Steps(True, **{dtype: "float16"})
    assert not steps.attached
    assert isinstance(steps.network.row_losses.cross_entropy, operators.CrossEntropy)


def test_what_has_no_kernel_stays_plain(library):
    steps = Steps(True, "lamb", hidden_act="gelu")
    assert steps.attached and isinstance(steps.network.row_losses.cross_entropy, cells.CrossEntropy)
    assert isinstance(steps.model.backbone.blocks[0].output.biased_activation, operators.BiasedRows)
    assert isinstance(steps.optimizer.update, optimizer.LambUpdate)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler(compiler, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "COMPILER", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    steps = Steps(True)
    assert not steps.attached and isinstance(steps.optimizer.update, optimizer.AdamUpdate)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "plain operators" in error and compiler in error
    assert not list(tmp_path.rglob("*.so"))


def test_it_is_compiled_once(library, monkeypatch):
    monkeypatch.setattr(build.subprocess, "run", None)
    assert build.library() == library


WIDE = dict(num_heads=8, hidden_size=1040, std=0.02)  # more inputs than one part of a product takes


@pytest.mark.parametrize("sizes", [dict(num_heads=6, hidden_size=72, ffn_hidden_size=130), dict(num_heads=1), WIDE])
def test_decoding_by_kernel(sizes, library, monkeypatch):
    monkeypatch.setattr(threads, "PRODUCTS_OF_A_THREAD", 1)
    model, other = (random_model(**{"num_layers": 3, **sizes})[0] for _ in range(2))
    plain, ours = build_runtime(model), build_runtime(other, cpu_kernels=True)
    draw = np.random.default_rng(0)
    lengths = np.array([9, 3, 14], np.int32)
    ids = draw.integers(0, model.config.vocab_size, (3, 14), dtype=np.int32)
    np.testing.assert_allclose(*(runtime.prefill(ids, lengths, 30) for runtime in (plain, ours)), rtol=1e-4, atol=1e-4)
    for step in range(8):
        if step == 4:
            order = np.array([2, 0, 0])
            lengths = lengths[order]
            for runtime in (plain, ours):
                runtime.reorder(order)
        tokens = draw.integers(0, model.config.vocab_size, 3, dtype=np.int32)
        wanted, got = (runtime.decode(tokens, lengths + step) for runtime in (plain, ours))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [dict(), dict(num_heads=6, hidden_size=72, ffn_hidden_size=130), WIDE], ids=str)
def test_a_text_gets_the_same_numbers_to_the_last_bit_whatever_else_is_read(library, sizes, monkeypatch):
    """Texts of many lengths are read alone, together, in other rows, by one thread and by more; nothing differs."""
    model, _ = random_model(num_layers=2, seq_length=600, **sizes)
    monkeypatch.setattr(threads, "PRODUCTS_OF_A_THREAD", 1)
    runtime, draw = build_runtime(model, cpu_kernels=True), np.random.default_rng(0)
    lengths = np.array([1, 3, 590, 14, 22, 28, 17, 530, 5, 31, 16, 4], np.int32)
    ids = draw.integers(0, model.config.vocab_size, (len(lengths), 590), dtype=np.int32)
    next_ids = draw.integers(0, model.config.vocab_size, len(lengths), dtype=np.int32)
    together = [runtime.prefill(ids, lengths, 600), runtime.decode(next_ids, lengths)]
    together.append(runtime.decode(next_ids[::2], lengths[::2] + 1, np.arange(len(lengths))[::2]))
    for number, length in enumerate(lengths):
        monkeypatch.setattr(threads, "PRODUCTS_OF_A_THREAD", 1 if number % 3 == 0 else 10**12)
        row, own = np.array([(number + 5) % len(lengths)]), slice(number, number + 1)
        alone = [runtime.join(ids[own, :length], lengths[own], row)]
        alone += [runtime.decode(next_ids[own], lengths[own] + step, row) for step in range(2)]
        for step in range(2 + (number % 2 == 0)):
            np.testing.assert_array_equal(alone[step][0], together[step][number // 2 if step == 2 else number])


def test_weights_and_caches_are_read_where_they_are_now(library):
    """A parameter gets other memory when it is set, and a cache when it is opened with another size."""
    model, _ = random_model(num_layers=2)
    runtime, ids, lengths = build_runtime(model, cpu_kernels=True), np.arange(12, dtype=np.int32)[None], np.array([12])
    before = runtime.prefill(ids, lengths, 20)
    for _, parameter in model.parameters_and_names():
        address = parameter.data_ptr()
        parameter.set_data(Tensor(parameter.asnumpy() + np.float32(0.01)))
        assert parameter.data_ptr() != address
    for capacity in (20, 30):
        after = [runtime.prefill(ids, lengths, capacity), runtime.decode(ids[:, 0], lengths)]
        fresh = build_runtime(model, cpu_kernels=True)
        np.testing.assert_array_equal(after[0], fresh.prefill(ids, lengths, capacity))
        np.testing.assert_array_equal(after[1], fresh.decode(ids[:, 0], lengths))
        assert abs(after[0] - before).max() > 1e-3


def test_only_what_the_kernel_computes_is_run_by_it(library):
    for sizes, fits in ((dict(), True), (dict(hidden_act="gelu"), False), (dict(num_experts=2), False)):
        assert (token_decoder(random_model(num_layers=2, **sizes)[0]) is not None) == fits
