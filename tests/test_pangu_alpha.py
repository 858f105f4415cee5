"""Compare the model and its loss with the numbers of a peer (tests/golden) and with a float64 specification."""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from src.common.settings import GenerationConfig, TrainingConfig
from src.dataset import causal, eod_reset
from src.inference.loop import generate_tokens
from src.inference.mindspore.load import build_runtime
from src.nn.optimizer import Optimizer, StepScalars
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.pangu_alpha_wrapcell import ApplyGradients, TrainStep
from tests.support import numpy_pangu
from tests.support.programs import TINY, random_ids, random_model

GOLDEN = {path.stem: dict(np.load(path)) for path in (Path(__file__).parent / "golden").glob("*.npz")}
PEER = GOLDEN["peer"]
CONFIG = PanguAlphaConfig(
    vocab_size=160, hidden_size=32, num_layers=3, num_heads=4, seq_length=48, dropout_rate=0.0, eod_token=8
)


@pytest.fixture
def golden_model():
    model = PanguAlphaModel(CONFIG)
    assert {p.name: p.shape for p in model.get_parameters()} == {k: v.shape for k, v in GOLDEN["weights"].items()}
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(GOLDEN["weights"][parameter.name]))
    return model


@pytest.fixture
def golden_batch():
    return tuple(Tensor(PEER[name]) for name in ("ids", "position_ids", "attention_mask"))


def is_key_bias(name):
    """Whether a parameter is the bias of the keys.

    It adds the same number to all scores of a query, which the softmax cancels. So its true gradient is 0. Both
    implementations compute rounding noise, which Adam scales up to steps of full size.
    """
    return name.endswith("attention.dense2.bias")


def largest(values):
    return np.abs(values).max()


def test_eod_reset_gives_the_peer_s_inputs():
    position_ids, attention_mask = eod_reset(PEER["ids"], CONFIG.eod_token)
    np.testing.assert_array_equal(position_ids, PEER["position_ids"])
    np.testing.assert_array_equal(attention_mask, PEER["attention_mask"])


def test_logits_are_the_peer_s(golden_model, golden_batch):
    ids, position_ids, attention_mask = golden_batch
    logits = golden_model(ids[:, :-1], position_ids, attention_mask)
    assert logits.dtype == ms.float32 and logits.shape == PEER["logits"].shape
    assert largest(logits.asnumpy() - PEER["logits"]) < 1e-4
    position_ids, _ = causal(PEER["ids"])
    logits = golden_model(ids[:, :-1], Tensor(position_ids), Tensor(PEER["eval_mask"])).asnumpy()
    # A pad attends to nothing. All its scores are near -10000, where neighbouring float32 numbers differ by 0.001.
    looks = PEER["eval_mask"].any(-1)
    assert looks.sum() > 80 and not looks.all()
    assert largest(logits - PEER["eval_logits"]) < 1e-2
    assert largest((logits - PEER["eval_logits"])[looks]) < 1e-4


def assert_loss_and_gradients_are_the_peer_s(network, golden_batch):
    assert float(network(*golden_batch)) == pytest.approx(float(PEER["losses"][0]), abs=1e-5)
    parameters = ParameterTuple(network.trainable_params())
    gradients = ops.GradOperation(get_by_list=True)(network, parameters)(*golden_batch)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = GOLDEN["gradients"][parameter.name]
        error = largest(gradient.asnumpy() - expected)
        assert error < (1e-6 if is_key_bias(parameter.name) else 1e-4 * largest(expected)), parameter.name


def test_loss_and_gradients_are_the_peer_s(golden_model, golden_batch):
    assert_loss_and_gradients_are_the_peer_s(PanguAlphaWithLoss(CONFIG, golden_model), golden_batch)


def test_three_optimizer_steps_are_the_peer_s(golden_model, golden_batch):
    training = TrainingConfig(learning_rate=1e-3, end_learning_rate=1e-3, warmup_steps=0, steps=3)
    parameters = golden_model.trainable_params()
    apply_gradients = ApplyGradients(Optimizer(training, parameters), clip_norm=1.0)
    step = TrainStep(PanguAlphaWithLoss(CONFIG, golden_model), parameters, apply_gradients)
    scale = Tensor(np.float32(1024))
    for number, expected in enumerate(PEER["losses"]):
        loss, norm, finite = step(scale, *StepScalars.at(training, number, number).tensors(), *golden_batch)
        assert finite and float(loss) == pytest.approx(float(expected), abs=1e-4)
        if number == 0:
            assert float(norm) == pytest.approx(float(PEER["gradient_norm"]), rel=1e-5)
    for parameter in golden_model.get_parameters():
        error = largest(parameter.asnumpy() - GOLDEN["updated"][parameter.name])
        assert error < (1e-3 if is_key_bias(parameter.name) else 1e-5), parameter.name


@pytest.mark.parametrize("use_past", [True, False])
def test_greedy_tokens_are_the_peer_s(golden_model, use_past):
    config = GenerationConfig(max_new_tokens=len(PEER["greedy"]), end_token=CONFIG.vocab_size - 1)
    prompt = PEER["ids"][0, :7].tolist()
    [[answer]] = generate_tokens(build_runtime(golden_model, use_past), [prompt], config, CONFIG.pad_token)
    assert answer.tokens == PEER["greedy"].tolist()


SHAPES = [
    dict(hidden_act="gelu", num_heads=2),
    dict(num_heads=1, num_layers=2, ffn_hidden_size=40, layernorm_epsilon=1e-3),
    dict(hidden_size=24, num_heads=8, vocab_size=37, ffn_hidden_size=96, seq_length=9, eod_token=3, pad_token=0),
    dict(num_heads=32, eod_token=6, pad_token=6),
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_logits_and_loss_are_the_specification_s(changes):
    config = replace(TINY, **changes)
    model, weights = random_model(seed=3, **changes)
    ids = random_ids(3, config, seed=1)
    for position_ids, mask in (eod_reset(ids, config.eod_token), causal(ids)):
        logits = model(Tensor(ids[:, :-1]), Tensor(position_ids), Tensor(mask)).asnumpy()
        expected = numpy_pangu.logits(weights, config, ids[:, :-1], position_ids, mask)
        assert largest(logits - expected) < 2e-5 * largest(expected)
    loss = PanguAlphaWithLoss(config, model)(Tensor(ids), Tensor(position_ids), Tensor(mask))
    assert float(loss) == pytest.approx(numpy_pangu.loss(expected, ids, config.pad_token), rel=1e-5)


def test_loss_counts_only_what_the_mask_counts():
    model, weights = random_model(seed=4)
    network = PanguAlphaWithLoss(TINY, model)
    ids = random_ids(2, seed=2)
    inputs = causal(ids)
    loss_mask = (np.random.default_rng(0).random((2, TINY.seq_length)) < 0.4).astype(np.float32)
    logits = numpy_pangu.logits(weights, TINY, ids[:, :-1], *inputs)
    loss = float(network(Tensor(ids), *map(Tensor, inputs), Tensor(loss_mask)))
    assert loss == pytest.approx(numpy_pangu.loss(logits, ids, TINY.pad_token, loss_mask), rel=1e-5)
    nothing = network(Tensor(ids), *map(Tensor, inputs), Tensor(np.zeros_like(loss_mask)))
    assert float(nothing) == 0.0


def test_initial_weights():
    config = replace(TINY, hidden_size=64, ffn_hidden_size=256, depth_scaled_init=True)
    plain, scaled = PanguAlphaModel(replace(config, depth_scaled_init=False)), PanguAlphaModel(config)
    assert sum(p.size for p in plain.get_parameters()) == config.num_parameters
    for parameter, narrower in zip(plain.get_parameters(), scaled.get_parameters(), strict=True):
        name, values = parameter.name, parameter.asnumpy()
        if name.endswith(("beta", "bias", "gamma")):
            assert (values == name.endswith("gamma")).all()
            continue
        assert values.std() == pytest.approx(0.01, rel=0.1) and abs(values.mean()) < 0.001
        into_residual = name.endswith(("attention.projection.weight", "output.projection.weight"))
        expected = 0.01 / np.sqrt(2 * config.num_layers) if into_residual else 0.01
        assert narrower.asnumpy().std() == pytest.approx(expected, rel=0.1)


def test_half_precision_weights_leave_embeddings_and_layernorms_alone():
    model = PanguAlphaModel(replace(TINY, param_init_dtype="float16"))
    for parameter in model.get_parameters():
        whole = "embedding" in parameter.name or "layernorm" in parameter.name
        assert parameter.dtype == (ms.float32 if whole else ms.float16), parameter.name


def test_float16_stays_near_float32():
    model, weights = random_model(seed=5, std=0.1, compute_dtype="float16", param_init_dtype="float16")
    ids = random_ids(2)
    position_ids, mask = eod_reset(ids, TINY.eod_token)
    logits = model(Tensor(ids[:, :-1]), Tensor(position_ids), Tensor(mask))
    expected = numpy_pangu.logits(weights, TINY, ids[:, :-1], position_ids, mask)
    assert logits.dtype == ms.float32
    assert largest(logits.asnumpy() - expected) < 0.02 * largest(expected)
