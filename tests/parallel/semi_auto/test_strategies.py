"""Shard strategies on a model that runs in one process: they do not change its results."""

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, ops

from src.common.cli import parse
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.dataset import causal
from src.nn.dropout import dropout_keys
from src.nn.optimizer import StepScalars
from src.nn.product_mask import use_product_masks
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.plan import Plan
from src.parallel.recompute import recompute_layers
from src.parallel.semi_auto.generation import SemiAutoNextLogits, make_caches, make_paged_caches
from src.parallel.semi_auto.strategies import annotate, annotate_model
from src.parallel.semi_auto.train_step import Objective, SemiAutoStepper, build_train_step
from src.training.config import TrainConfig
from tests.support.ascend_operators import emulate
from tests.support.programs import TINY, random_ids, random_model
from tests.test_pangu_alpha import (  # noqa: F401
    CONFIG,
    GOLDEN,
    PEER,
    assert_loss_and_gradients_are_the_peer_s,
    golden_batch,
    golden_model,
    is_key_bias,
    largest,
)

ONE_DEVICE = Plan(num_layers=CONFIG.num_layers)


def test_annotated_logits_loss_and_gradients_are_the_peer_s(golden_model, golden_batch):  # noqa: F811
    network = PanguAlphaWithLoss(CONFIG, golden_model)
    annotate(network, ONE_DEVICE)
    ids, position_ids, attention_mask = golden_batch
    logits = golden_model(Tensor(PEER["ids"][:, :-1]), position_ids, attention_mask).asnumpy()
    assert largest(logits - PEER["logits"]) < 1e-4
    assert_loss_and_gradients_are_the_peer_s(network, golden_batch)


@pytest.mark.parametrize(
    "changes, recompute",
    [
        pytest.param(dict(dropout_rate=0.2, hidden_act="gelu"), True, marks=pytest.mark.slow),
        (dict(num_layers=2, num_experts=4, expert_top_k=2, capacity_factor=0.5, dropout_rate=0.1), False),
    ],
    ids=str,
)
def test_annotations_change_nothing(changes, recompute):
    """Masks, places and losses stay those of one device, and gradients stay the same except for rounding. So they do
    with recompute. One rank slices nothing of what is kept."""
    model, _ = random_model(seed=5, **changes)
    use_product_masks(model)
    network = PanguAlphaWithLoss(model.config, model)
    ids = random_ids(3, model.config)
    inputs = [Tensor(ids), *map(Tensor, causal(ids)), Tensor(np.ones((3, TINY.seq_length), np.float32))]
    inputs.append(Tensor(dropout_keys(0, 1, 2, 3)))
    parameters = ParameterTuple(model.trainable_params())

    def results():
        objective = Objective(network)
        loss = float(objective(*inputs))
        gradients = ops.GradOperation(get_by_list=True)(objective, parameters)(*inputs)
        return loss, [gradient.asnumpy() for gradient in gradients]

    loss, gradients = results()
    annotate(network, ONE_DEVICE)
    if recompute:
        recompute_layers(model, "full", norms=True, slice_activation=True)
    annotated_loss, annotated_gradients = results()
    assert annotated_loss == pytest.approx(loss, rel=1e-6)
    for parameter, before, after in zip(parameters, gradients, annotated_gradients, strict=True):
        assert largest(after - before) < 1e-5 * max(1.0, largest(before)), parameter.name


def test_three_steps_are_the_peer_s(golden_batch):  # noqa: F811
    """The train step of semi-automatic parallel runs in a single process here."""
    model, parallel = replace(CONFIG), ParallelConfig()
    training = TrainingConfig(learning_rate=1e-3, end_learning_rate=1e-3, warmup_steps=0, steps=3, batch_size=2)
    config = RunConfig(model, DataConfig(), training, parallel, GenerationConfig())
    network = PanguAlphaModel(model)
    step, optimizer = build_train_step(config, network, rank=0)
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(GOLDEN["weights"][parameter.name]))
    for moment in optimizer.state:
        moment.set_data(Tensor(np.zeros(moment.shape, np.float32)))
    stepper = SemiAutoStepper(step, ONE_DEVICE, 0, 1)
    assert stepper.evaluate((*golden_batch, None, None)) == pytest.approx(float(PEER["losses"][0]), abs=1e-5)
    for number, expected in enumerate(PEER["losses"]):
        result = stepper.train(1024.0, StepScalars.at(training, number, number), [(*golden_batch, None, None)])
        assert result.finite and result.loss == pytest.approx(float(expected), abs=1e-4)
        if number == 0:
            assert result.gradient_norm == pytest.approx(float(PEER["gradient_norm"]), rel=1e-5)
    for parameter in network.get_parameters():
        error = largest(parameter.asnumpy() - GOLDEN["updated"][parameter.name])
        assert error < (1e-3 if is_key_bias(parameter.name) else 1e-5), parameter.name


def test_gradients_are_sent_by_groups_of_layers():
    config = RunConfig(CONFIG, DataConfig(), TrainingConfig(), ParallelConfig(fusion_groups=2), GenerationConfig())
    model = PanguAlphaModel(CONFIG)
    build_train_step(config, model, rank=0)
    assert [layer.attention.dense1.weight.comm_fusion for layer in model.layers] == [1, 1, 2]


@pytest.mark.parametrize("make", [make_caches, make_paged_caches])
def test_generation_graphs_choose_the_peer_s_tokens(golden_model, make, monkeypatch):  # noqa: F811
    emulate(monkeypatch.setattr)
    prompt = PEER["ids"][0, :7].tolist()
    annotate_model(golden_model, ONE_DEVICE)
    caches = make(golden_model, ONE_DEVICE, batch=1, capacity=CONFIG.seq_length)
    prefill, decode = (SemiAutoNextLogits(golden_model, caches, tokens) for tokens in (16, 1))
    zero = Tensor([0], ms.int32)
    padded = Tensor([prompt + [0] * (16 - len(prompt))], ms.int32)
    tokens = [int(prefill(padded, zero, Tensor([len(prompt) - 1], ms.int32), zero).asnumpy().argmax())]
    while len(tokens) < len(PEER["greedy"]):
        position = Tensor([len(prompt) + len(tokens) - 1], ms.int32)
        tokens.append(int(decode(Tensor([tokens[-1:]], ms.int32), position, zero, zero).asnumpy().argmax()))
    assert tokens == PEER["greedy"].tolist()


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            ["--model.num_heads=20", "--model.hidden_size=160", "--parallel.tensor=8"],
            "parallel.tensor 8 does not divide model.num_heads 20; 5 does",
        ),
        (["--parallel.world_size=8", "--parallel.pipeline=3"], "but parallel.world_size is 8; 9 ranks would fit"),
        (
            ["--parallel.pipeline=5", "--parallel.micro_batch_num=5"],
            "parallel.pipeline 5 is more than the model's 3 layers",
        ),
        (
            ["--parallel.pipeline=3"],
            "fewer than the 3 stages (parallel.pipeline); parallel.micro_batch_num 3 would fit",
        ),
        (
            ["--model.num_experts=4", "--parallel.expert=3"],
            "parallel.expert 3 does not divide model.num_experts 4; 2 does",
        ),
        (
            [
                "--model.num_experts=4",
                "--parallel.pipeline=2",
                "--parallel.micro_batch_num=2",
                "--parallel.backend=semi_auto",
            ],
            "parallel.backend semi_auto has no pipeline for a model with experts",
        ),
        (
            ["--parallel.tensor=2", "--parallel.recompute", "--parallel.recompute_slice_activation"],
            "parallel.recompute_slice_activation and parallel.pipeline_scheduler need parallel.backend semi_auto",
        ),
        (
            [
                "--parallel.tensor=2",
                "--parallel.recompute",
                "--parallel.recompute_slice_activation",
                "--dry_run",
                "--parallel.micro_batch_interleaved=2",
                "--parallel.micro_batch_num=2",
            ],
            "work together only in steps of one micro-batch",
        ),
        (
            ["--parallel.fusion_megabytes=32"],
            "parallel.fusion_megabytes, parallel.recompute_slice_activation and parallel.pipeline_",
        ),
        (
            ["--dry_run", "--parallel.fusion_megabytes=32", "--parallel.fusion_groups=2"],
            "parallel.fusion_megabytes and parallel.fusion_groups are two ways to join messages",
        ),
        (["--parallel.jit_level=O1"], "parallel.jit_level O1 is for parallel.device_target Ascend, not CPU"),
        (
            ["--dry_run", "--parallel.data=2", "--parallel.comm_overlap=[computation_allgather_overlap]"],
            "parallel.comm_overlap computation_allgather_overlap needs parallel.optimizer_shard, on",
        ),
        (
            ["--parallel.data=2", "--parallel.comm_overlap=[grad_computation_allreduce_overlap]"],
            "on parallel.device_target Ascend with parallel.backend semi_auto",
        ),
        (["--parallel.data=6", "--parallel.backend=semi_auto"], "on 1, 2, 4 or a multiple of 8 ranks"),
        (
            ["--parallel.tensor=2", "--parallel.backend=semi_auto"],
            "--dry_run compiles it, and parallel.backend explicit runs",
        ),
    ],
)
def test_wrong_plans_are_refused_before_the_compiler(flags, told, capsys):
    with pytest.raises((SystemExit, InputError)) as refused:
        parse(TrainConfig, "train.py", ["--mode=tiny", *flags])
    errors = capsys.readouterr().err.strip() or str(refused.value)
    assert told in errors and "\n" not in errors
