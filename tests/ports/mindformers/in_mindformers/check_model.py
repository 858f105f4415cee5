"""The model, its loss, its step and its answers, against the numbers of a peer (tests/golden)."""

import mindspore as ms
import numpy as np
import pytest
from mindformers import AutoConfig, AutoModel
from mindspore import ParameterTuple, Tensor

from ports.mindformers.model import PanguAlphaHeadModel
from ports.mindformers.training import FP32StateAdamWeightDecay, PanguAlphaTrainOneStepCell
from src.checkpoint import ckpt_file
from src.common.errors import InputError
from tests.ports.mindformers.in_mindformers.conftest import GOLDEN

PEER = GOLDEN["peer"]
STEPS = len(PEER["losses"])


def batch():
    return tuple(Tensor(PEER[name]) for name in ("ids", "position_ids", "attention_mask"))


def is_key_bias(name):
    """Whether a parameter is the bias of the keys, whose true gradient is 0. Both sides compute rounding noise."""
    return name.endswith("attention.dense2.bias")


def largest(values):
    return np.abs(values).max()


def test_logits_are_the_peer_s(golden_model):
    ids, position_ids, attention_mask = batch()
    assert isinstance(golden_model, PanguAlphaHeadModel)
    logits, told_ids, mask = golden_model(ids, position_ids, attention_mask)
    assert largest(logits.asnumpy()[:, :-1] - PEER["logits"]) < 2e-4
    assert np.array_equal(told_ids.asnumpy(), PEER["ids"])
    counted = np.pad(PEER["ids"][:, :-1] != 6, ((0, 0), (1, 0)))
    assert np.array_equal(mask.asnumpy(), counted) and not mask.asnumpy().all()


RECOMPUTED = {"parallel_config": {"recompute": {"recompute": True}}}


@pytest.mark.parametrize("golden_model", [{}, RECOMPUTED], ids=["", "recomputed"], indirect=True)
def test_loss_and_gradients_are_the_peer_s(golden_model):
    parameters = ParameterTuple(golden_model.set_train(True).trainable_params())
    assert {p.name: p.shape for p in parameters} == {k: v.shape for k, v in GOLDEN["weights"].items()}
    is_asked = golden_model.config.parallel_config.recompute.recompute
    assert all(("recompute" in (layer.attention.get_scope() or "")) is is_asked for layer in golden_model.pangu.layers)
    loss, gradients = ms.value_and_grad(golden_model, None, parameters)(*batch())
    assert float(loss) == pytest.approx(float(PEER["losses"][0]), abs=3e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        right = GOLDEN["gradients"][parameter.name]
        error = largest(gradient.asnumpy() - right)
        assert error < (1e-6 if is_key_bias(parameter.name) else 2e-4 * largest(right)), parameter.name


def test_three_steps_are_the_peer_s(golden_model):
    groups = [
        {"params": [p for p in golden_model.trainable_params() if is_decayed is (p.ndim > 1)], "weight_decay": decay}
        for is_decayed, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = FP32StateAdamWeightDecay(groups, learning_rate=1e-3)
    step = PanguAlphaTrainOneStepCell(
        golden_model, optimizer, use_clip_grad=True, max_grad_norm=1.0, scale_sense=Tensor(1024.0, ms.float32)
    ).set_train(True)
    for number in range(STEPS):
        loss, overflow, _, _, norm = step(*batch())
        assert not overflow and float(loss) == pytest.approx(float(PEER["losses"][number]), abs=1e-4)
        if number == 0:
            assert norm.asnumpy().item() == pytest.approx(float(PEER["gradient_norm"]), rel=1e-5)
    assert int(optimizer.global_step.asnumpy()[0]) == STEPS
    for parameter in golden_model.get_parameters():
        error = largest(parameter.asnumpy() - GOLDEN["updated"][parameter.name])
        assert error < (1e-3 if is_key_bias(parameter.name) else 2e-5), parameter.name


def test_a_step_that_overflows_changes_nothing(golden_model):
    optimizer = FP32StateAdamWeightDecay(golden_model.trainable_params(), learning_rate=1e-3)
    before = {p.name: p.asnumpy().copy() for p in golden_model.get_parameters()}
    step = PanguAlphaTrainOneStepCell(golden_model, optimizer, scale_sense=Tensor(3e38, ms.float32)).set_train(True)
    assert step(*batch())[1]
    assert all(np.array_equal(p.asnumpy(), before[p.name]) for p in golden_model.get_parameters())


def test_greedy_tokens_are_the_peer_s_alone_and_in_a_batch(golden_model):
    number = len(PEER["greedy"])
    prompt = PEER["ids"][0, :7].tolist()
    others = [PEER["ids"][1, :length].tolist() for length in (3, 12, 20)]
    alone = {}
    for use_past in (True, False):
        [whole] = golden_model.generate(prompt, max_new_tokens=number, use_past=use_past)
        assert whole.tolist() == prompt + PEER["greedy"].tolist() and number == 16
        alone[use_past] = [golden_model.generate(one, max_new_tokens=number, use_past=use_past)[0] for one in others]
        padded = [one + [6] * (20 - len(one)) for one in (prompt, *others)]
        together = golden_model.generate(np.array(padded), max_new_tokens=number, use_past=use_past)
        assert [one.tolist() for one in together] == [whole.tolist(), *(one.tolist() for one in alone[use_past])]
    assert [one.tolist() for one in alone[True]] == [one.tolist() for one in alone[False]]


def test_settings_of_generation_are_honoured(golden_model):
    prompt = PEER["ids"][0, :7].tolist()
    greedy = golden_model.generate(prompt, max_length=20)[0].tolist()
    assert (
        len(greedy) == 20
        and golden_model.generate(prompt, max_length=20, do_sample=True, top_k=1)[0].tolist() == greedy
    )
    ended = golden_model.generate(prompt, max_length=20, eos_token_id=[159, greedy[9]])[0].tolist()
    assert (
        ended == greedy[:10]
        and golden_model.generate(prompt, max_length=20, eos_token_id=greedy[9])[0].tolist() == ended
    )
    draws = [
        golden_model.generate(prompt, max_length=20, do_sample=True, top_k=0, seed=seed)[0].tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    fresh = {tuple(golden_model.generate(prompt, max_length=20, do_sample=True, top_k=0)[0].tolist()) for _ in range(3)}
    assert len(fresh) == 3
    punished = golden_model.generate(prompt, max_length=30, repetition_penalty=1e6)[0].tolist()
    assert len(set(punished)) == len(set(prompt)) + 23
    assert golden_model.generate(prompt, max_length=20, top_p=1e-6, do_sample=True, top_k=0)[0].tolist() == greedy
    assert golden_model.generate(prompt, max_length=20, return_dict_in_generate=True)["sequences"][0].tolist() == greedy


def test_a_streamer_gets_the_tokens_as_they_are_made(golden_model):
    class Streamer:
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got += np.ravel(value).tolist()

        def end(self):
            self.got.append("end")

    streamer, prompt = Streamer(), PEER["ids"][0, :7].tolist()
    whole = golden_model.generate(prompt, max_length=20, streamer=streamer)[0].tolist()
    assert streamer.got == [*whole, "end"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_lenght": 20}, "no setting 'max_lenght'; did you mean 'max_length'?"),
        ({"max_length": 7}, "a prompt has 7 tokens, which leaves no room in max_length 7"),
        ({"min_length": 3}, "min_length is 3"),
        ({"top_p": 1.5, "max_length": 20}, "top_p is 1.5"),
        ({"logits_processor": [1]}, "no logits_processor"),
        ({"eos_token_id": []}, "eos_token_id is not given"),
    ],
)
def test_what_is_not_honoured_is_refused(golden_model, settings, told):
    with pytest.raises(InputError, match=told.replace("?", r"\?")):
        golden_model.generate(PEER["ids"][0, :7].tolist(), **settings)


def test_a_saved_model_has_the_same_bits_and_answers(golden_model, tmp_path):
    golden_model.save_pretrained(str(tmp_path / "saved"))
    again = AutoModel.from_pretrained(str(tmp_path / "saved"))
    values = {p.name: p.asnumpy() for p in again.get_parameters()}
    assert all(np.array_equal(value, values.pop(name)) for name, value in GOLDEN["weights"].items()) and not values
    assert again.config.ours() == golden_model.config.ours()


def test_weights_that_do_not_fit_are_refused(work, tmp_path):
    weights = dict(GOLDEN["weights"])
    del weights["backbone.layernorm.gamma"]
    ckpt_file.write(tmp_path / "lacking.ckpt", weights.items())
    with pytest.raises(InputError, match="does not fit the model: 'backbone.embedding.word"):
        name = AutoConfig.from_pretrained("pangualpha_tiny", checkpoint_name_or_path="")
        AutoModel.from_config(name).fuse_weight_from_ckpt({k: Tensor(v) for k, v in weights.items()})
    with pytest.raises(InputError, match="has no parameter 'backbone.layernorm.gamma'|'backbone"):
        AutoModel.from_pretrained("pangualpha_tiny", checkpoint_name_or_path=str(tmp_path / "lacking.ckpt"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_dropout_rate": 0.2}, "one rate of dropout here, but embedding_dropout_prob is .* is 0.2"),
        ({"layernorm_compute_type": "float16"}, "LayerNorms are float32"),
        ({"num_heads": 5}, "num_heads 5 does not divide"),
        ({"expert_num": 4}, "expert_num is 4: the model of the plug-in has 1 alone"),
        ({"post_layernorm_residual": True}, "post_layernorm_residual is True"),
        ({"pet_config": {"pet_type": "lora"}}, "pet_config: the plug-in trains whole models"),
        ({"hidden_sise": 8}, "no setting 'hidden_sise'; did you mean 'hidden_size'"),
    ],
)
def test_settings_that_this_model_cannot_have_are_refused(changes, told):
    with pytest.raises(InputError, match=told):
        AutoConfig.from_pretrained("pangualpha_tiny", **changes)


def test_names_that_are_none_are_refused(tmp_path):
    for auto in (AutoConfig, AutoModel):
        with pytest.raises(InputError, match="'pangualpha_2_7b' is none of .*; did you mean 'pangualpha_2_6b'"):
            auto.from_pretrained("pangualpha_2_7b")
    with pytest.raises(InputError, match="no weights of pangualpha_13b: put them at checkpoint_download/pangualpha/"):
        AutoModel.from_pretrained("pangualpha_13b", num_layers=2, hidden_size=32, num_heads=4)
