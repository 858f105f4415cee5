"""The wiring of Ascend's fused attention, with an emulation of the operator: it computes what the plain one does."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from src.common.cli import parse
from src.common.errors import InputError
from src.dataset import document_ends, documents_of, eod_reset
from src.nn.dropout import dropout_keys
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.parallel import attention
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.strategies import annotate
from src.training.config import TrainConfig
from tests.support.flash_attention import FlashAttentionScore
from tests.support.programs import TINY, random_ids, random_model
from tests.test_pangu_alpha import CONFIG, GOLDEN, PEER, assert_loss_and_gradients_are_the_peer_s, golden_batch, largest  # noqa: F401


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(attention, "FlashAttentionScore", FlashAttentionScore)


def golden_model(**changes):
    model = PanguAlphaModel(replace(CONFIG, **changes))
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(GOLDEN["weights"][parameter.name]))
    return model


@pytest.mark.parametrize("is_annotated", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_logits_loss_and_gradients_are_the_peer_s(golden_batch, dropout, is_annotated):  # noqa: F811
    """By the ends of documents, or by a mask where attention may drop. Nothing drops without a key."""
    model = golden_model(attention_dropout_rate=dropout)
    network = PanguAlphaWithLoss(model.config, model)
    if is_annotated:
        annotate(network, Plan(num_layers=CONFIG.num_layers))
    attention.fuse_attention(model, by_ends=not dropout)
    ids, positions, _ = golden_batch
    found, document = documents_of(PEER["ids"], CONFIG.eod_token)
    assert (found == PEER["position_ids"]).all() and document.max() > 1
    taken = Tensor(document if dropout else document_ends(document, 7, len(document)))
    logits = model(Tensor(PEER["ids"][:, :-1]), positions, taken).asnumpy()
    assert largest(logits - PEER["logits"]) < 1e-4
    assert_loss_and_gradients_are_the_peer_s(network, (ids, positions, taken))


def test_the_same_weights_are_dropped():
    model, _ = random_model(seed=3, dropout_rate=0.2, attention_dropout_rate=0.3, eod_token=7)
    network = PanguAlphaWithLoss(model.config, model)
    ids = random_ids(3, model.config)
    position_ids, mask = eod_reset(ids, 7)
    counted, key = Tensor(np.ones((3, TINY.seq_length), np.float32)), Tensor(dropout_keys(0, 1, 2, 3))
    parameters = ParameterTuple(model.trainable_params())

    def results(taken):
        inputs = (Tensor(ids), Tensor(position_ids), Tensor(taken), counted, key)
        gradients = ops.GradOperation(get_by_list=True)(network, parameters)(*inputs)
        return float(network(*inputs)), [gradient.asnumpy() for gradient in gradients]

    loss, gradients = results(mask)
    attention.fuse_attention(model, by_ends=False)
    fused_loss, fused = results(documents_of(ids, 7)[1])
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    for plain, other in zip(gradients, fused, strict=True):
        assert largest(plain - other) < 1e-5 * max(1.0, largest(plain))


def test_bits_are_those_of_the_kept_weights():
    """Bit i of byte b is key 8 b + i."""
    model, _ = random_model(seed=3, attention_dropout_rate=0.5)
    core = model.layers[1].attention.core
    bits = attention.KeptBits(core.dropout, core.num_heads, TINY.seq_length, 1, 1)
    keys = Tensor([5, 6], ms.int32)
    ones = ops.ones((2, core.num_heads, TINY.seq_length, TINY.seq_length), ms.float32)
    kept = core.dropout(ones, keys).asnumpy() > 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_array_equal(bits(keys).asnumpy(), np.packbits(kept, axis=-1, bitorder="little"))


HALF = ["--model.compute_dtype=float16", "--parallel.device_target=Ascend", "--mode=tiny"]


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], "mask"),  # no device says what it is
        (["--parallel.chip=910A"], "mask"),
        (["--parallel.chip=A2"], "document ends"),
        (["--parallel.chip=A3", "--model.dropout_rate=0.1"], "documents"),
        (["--parallel.chip=A2", "--model.dropout_rate=0.1", "--model.attention_dropout_rate=0"], "document ends"),
        (["--parallel.chip=A2", "--parallel.attention=plain"], "mask"),
        (["--parallel.chip=A2", "--model.compute_dtype=float32"], "mask"),
        (["--parallel.chip=A2", "--model.num_heads=16"], "mask"),  # heads of 8
        (["--parallel.attention=flash"], "document ends"),
        (["--parallel.attention=flash", "--training.batch_size=17"], "documents"),  # 1,088 documents may be in a batch
        (["--parallel.attention=flash", "--training.batch_size=32", "--parallel.most_documents=32"], "document ends"),
    ],
    ids=str,
)
def test_attention_follows_chip_and_dtype(flags, expected):
    assert parse(TrainConfig, "train.py", [*HALF, *flags]).attention_input == expected


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--parallel.device_target=CPU"], "parallel.device_target is CPU or GPU"),
        (["--parallel.chip=910A"], "parallel.chip is 910A"),
        (["--model.compute_dtype=float32"], "model.compute_dtype is float32"),
        (["--model.num_heads=16"], "they have 8"),
    ],
    ids=str,
)
def test_flash_attention_that_cannot_be_is_refused(flags, told):
    with pytest.raises(InputError, match=told):
        parse(TrainConfig, "train.py", [*HALF, "--parallel.attention=flash", *flags])
