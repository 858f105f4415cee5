"""The plan's figures against numbers worked out by hand, a published formula, and the real model."""

import math
import random
from dataclasses import replace

import mindspore as ms
import pytest

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.explicit.build import build_model, build_stepper
from src.parallel.mesh import Mesh
from src.parallel.plan.costs import (
    Communication,
    activations,
    bubble,
    communication,
    is_float32,
    layer_activations,
    rank_memory,
)
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import box, optimizer_box, parameter_shapes, stages
from src.training.config import TrainConfig
from tests.support.programs import TINY
from tests.support.reality import bytes_by_kind, parameters

# 40,736 parameters: 3 layers of 12,704, tables of 1,536 (words), 512 (positions) and 512 (queries), a LayerNorm of 64.
MODEL = PanguAlphaConfig(vocab_size=48, hidden_size=32, num_layers=3, num_heads=4, seq_length=16, dropout_rate=0.0)
HIDDEN = 2 * 16 * 32 * 4  # bytes of the hidden states of 2 sequences


def config_of(parallel=None, model=None, **training):
    return TrainConfig(
        replace(MODEL, **model or {}),
        DataConfig(),
        TrainingConfig(**dict(batch_size=2) | training),
        ParallelConfig(**parallel or {}),
        GenerationConfig(),
    )


def held_by(config, rank=0):
    """(parameters, weights, gradients, moments, slices) of a rank."""
    memory = rank_memory(config, rank)
    return memory.parameters, memory.weights, memory.gradients, memory.moments, memory.slices


def payloads(config, rank=0):
    return {(one.kind, one.operation, one.ranks): one.payload for one in communication(config, rank)}


def test_one_rank_holds_everything_and_sends_nothing():
    assert held_by(config_of()) == (40736, 4 * 40736, 4 * 40736, 8 * 40736, 0)
    assert communication(config_of(), 0) == []


def test_tensor_parallel_halves_what_is_sliced():
    """A layer's 6,448: 1,584 in dense1-3, 544 and 2,080 in the row-parallel matrices (their biases whole), 2,112 in the
    mapping, 128 in LayerNorms; the word table's 768; positions, queries and the last LayerNorm whole."""
    assert held_by(config_of(dict(tensor=2)))[0] == 3 * 6448 + 768 + 512 + 512 + 64


def test_stages_hold_their_layers_and_both_the_word_table():
    config = config_of(dict(pipeline=2, micro_batch_num=2))
    assert held_by(config, 0) == (27456, 4 * 27456, 4 * 27456, 8 * 27456, 0)  # 2 layers, words, positions
    assert held_by(config, 1)[0] == 12704 + 64 + 512 + 1536


def test_optimizer_shard_halves_the_moments_alone():
    config = config_of(dict(data=2, optimizer_shard=True))
    assert held_by(config) == held_by(config, 1) == (40736, 4 * 40736, 4 * 40736, 4 * 40736, 2 * 40736)
    odd = config_of(dict(data=3, optimizer_shard=True))  # of all sizes only the vocabulary's 48 rows divide by 3
    assert held_by(odd)[3:] == (8 * (40736 - 1536 + 512), 4 * 512)


def test_half_precision_weights():
    """LayerNorms (448 numbers) and the tables (2,560) stay float32, as do sums over micro-batches and the moments."""
    weights = 2 * (40736 - 3008) + 4 * 3008
    half = dict(param_init_dtype="float16")
    assert held_by(config_of(model=half)) == (40736, weights, weights, 8 * 40736, 0)
    assert held_by(config_of(model=half, accumulation_steps=2))[2] == 4 * 40736
    assert held_by(config_of(dict(data=2, optimizer_shard=True), half))[4] == weights // 2


@pytest.mark.parametrize("changes", [{}, dict(num_experts=4)])
def test_which_parameters_stay_float32(changes):
    model = PanguAlphaModel(replace(TINY, param_init_dtype="float16", **changes))
    assert {p.name: is_float32(p.name) for p in model.get_parameters()} == {
        p.name: p.dtype == ms.float32 for p in model.get_parameters()
    }


def test_offloaded_moments_are_not_on_the_device():
    on_host, on_device = (rank_memory(config_of(dict(optimizer_offload=offload)), 0) for offload in (True, False))
    assert on_host.moments == on_device.moments == 8 * 40736
    assert on_device.total - on_host.total == on_device.moments


EXECUTED = {
    "dp2 with ZeRO": (dict(data=2, optimizer_shard=True), {}),
    "tp2": (dict(tensor=2), {}),
    "tp2 x pp2": (dict(tensor=2, pipeline=2, micro_batch_num=2), {}),
    "tp2, the word table whole": (dict(tensor=2, vocab_parallel=False), dict(vocab_size=47)),
    "experts over ep2 x tp2": (dict(expert=2, tensor=2), dict(num_experts=4)),
    "all at once, half precision": (
        dict(data=2, expert=2, tensor=2, pipeline=2, micro_batch_num=2, optimizer_shard=True),
        dict(num_experts=4, vocab_size=52, param_init_dtype="float16"),
    ),
}


@pytest.mark.parametrize("parallel, model", EXECUTED.values(), ids=EXECUTED)
def test_each_rank_s_parameters_take_the_planned_bytes(monkeypatch, parallel, model):
    """One after the other in one process, where groups have names but are never called; all Parameter objects count.
    tests/distributed/test_plan_reality.py has real ranks."""
    monkeypatch.setattr("src.parallel.mesh.create_group", lambda name, ranks: None)
    config = config_of(parallel, model)
    plan = Plan.of(config.parallel, config.model)
    for rank in range(plan.world_size):
        others = parameters()
        mesh = Mesh(plan, rank)
        model = build_model(config.model, mesh, seed=0)
        stepper, _ = build_stepper(config, model, mesh)
        before = set(map(id, others))
        held = bytes_by_kind(parameter for parameter in parameters() if id(parameter) not in before)
        planned, summed = rank_memory(config, rank), config.micro_steps > 1
        assert held == {
            "weights": planned.weights,
            "moments": planned.moments,
            "slices": planned.slices,
            "gradients": planned.gradients if summed else 0,
        }
        assert planned.parameters == sum(parameter.size for parameter in model.get_parameters())
        del stepper


def random_config(seed):
    draw = random.Random(seed)
    tensor, expert, pipeline = draw.choice([1, 2, 4]), draw.choice([1, 2]), draw.randint(1, 3)
    parallel = dict(
        tensor=tensor,
        expert=expert,
        pipeline=pipeline,
        data=draw.randint(1, 3),
        micro_batch_num=3,
        optimizer_shard=draw.random() < 0.7,
        sequence_parallel=tensor > 1 and draw.random() < 0.5,
        recompute=draw.random() < 0.5,
        vocab_parallel=draw.random() < 0.7,
    )
    model = dict(
        num_layers=draw.randint(3, 6),
        num_experts=2 * expert * draw.randint(expert - 1, 1),
        dropout_rate=draw.choice([0.0, 0.1]),
        param_init_dtype=draw.choice(["float32", "float16"]),
    )
    return config_of(parallel, model)


@pytest.mark.parametrize("seed", range(20))
def test_all_ranks_of_a_stage_hold_and_send_alike(seed):
    """What lets the report show one line a stage."""
    config = random_config(seed)
    plan = Plan.of(config.parallel, config.model)
    for stage in range(plan.pipeline):
        ranks = plan.group(plan.at_stage(0, stage), "data", "expert", "tensor")
        assert len({rank_memory(config, rank) for rank in ranks}) == 1
        assert len({tuple(communication(config, rank)) for rank in ranks}) == 1


@pytest.mark.parametrize("seed", range(20))
def test_totals_over_ranks(seed):
    """Each number of the model once, and its moments once, when what several ranks hold alike is counted once."""
    config = random_config(seed)
    plan, shapes = Plan.of(config.parallel, config.model), parameter_shapes(config.model)
    weights, moments, on_ranks = {}, {}, 0
    for rank in range(plan.world_size):
        at = plan.coordinates(rank)
        for name, shape in shapes.items():
            if at.pipeline in stages(name, plan):
                held, updated = box(name, shape, plan, at), optimizer_box(name, shape, plan, at)
                weights[name, held], moments[name, updated] = held.size, updated.size
                on_ranks += 2 * 4 * updated.size
    assert sum(weights.values()) == sum(moments.values()) == config.model.num_parameters
    assert sum(rank_memory(config, rank).moments for rank in range(plan.world_size)) == on_ranks


def test_a_layer_s_activations_by_hand():
    """2 x 16 tokens: input, second norm's input, both norms' outputs, q, k, v, mixed: 4 KiB each; 2 x 16 KiB of
    feed-forward units; attention weights of 2 x 4 heads x 16 x 16: 8 KiB."""
    kib = 1024
    assert layer_activations(config_of(), 0) == (4 + 4) * 4 * kib + 2 * 16 * kib + 8 * kib
    dropout = config_of(model=dict(dropout_rate=0.1))  # a mask after both, and of the weights a mask and what is left
    assert layer_activations(dropout, 0) == layer_activations(config_of(), 0) + 2 * 4 * kib + 2 * 8 * kib
    tensor = config_of(dict(tensor=2))
    assert layer_activations(tensor, 0) == 4 * 4 * kib + (4 * 4 + 2 * 16 + 8) * kib // 2
    sequence = dict(tensor=2, sequence_parallel=True)  # both inputs, and with dropout both masks
    assert layer_activations(tensor, 0) - layer_activations(config_of(sequence), 0) == 4 * kib
    tensor, sequence = (config_of(parallel, dict(dropout_rate=0.1)) for parallel in (dict(tensor=2), sequence))
    assert layer_activations(tensor, 0) - layer_activations(sequence, 0) == 8 * kib


def test_an_expert_layer_s_activations_by_hand():
    """4 experts x ceil(1.25 * 16 / 4) = 20 places a sequence of 16: rows of hidden size in and out, and of units before
    and after the activation; dispatch and combine tables of 2 x 16 x 20."""
    experts = config_of(model=dict(num_experts=4, expert_interval=2))
    rows = 2 * 20
    expected = 8 * 4096 + 8192 + rows * (2 * 32 + 2 * 128) * 4 + 2 * (2 * 16 * 20) * 4
    assert layer_activations(experts, 1) == expected
    assert layer_activations(experts, 0) == layer_activations(config_of(), 0)
    parts = [
        config_of(dict(tensor=2, sequence_parallel=on), dict(num_experts=4, expert_interval=2, dropout_rate=0.1))
        for on in (False, True)
    ]  # the mask of what comes back from the experts is one of all tokens
    assert layer_activations(parts[0], 1) - layer_activations(parts[1], 1) == 3 * HIDDEN // 2


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_a_layer_s_activations_are_those_of_megatron(tensor):
    """Korthikanti et al. (arXiv 2205.05198), equation 2, without dropout: s b h (8 + 24 / t) + 2 a s^2 b / t bytes."""
    half = dict(
        hidden_size=64,
        ffn_hidden_size=256,
        num_heads=8,
        seq_length=32,
        compute_dtype="float16",
        softmax_compute_dtype="float16",
    )
    s, b, h, a, t = 32, 2, 64, 8, tensor
    expected = s * b * h * (8 + 24 / t) + 2 * a * s * s * b / t
    assert layer_activations(config_of(dict(tensor=tensor), half), 0) == expected


def test_what_a_stage_keeps():
    """Besides its layers: ids, positions and mask of each micro-batch, and one mask as numbers; on top the inputs of
    final norm, queries and head, the logits and their gradient; between a pipeline's ends what came in with each
    micro-batch in flight."""
    layer, top = layer_activations(config_of(), 0), 3 * HIDDEN + 2 * 2 * 16 * 48 * 4
    batch = 2 * 16 * (4 + 4 + 16)
    mask = batch + 2 * 16 * 16 * 4
    one = config_of()
    assert activations(one, Plan.of(one.parallel, one.model), 0) == 3 * layer + mask + top
    recomputed = config_of(dict(recompute=True))
    kept = (2 + 2) * 3 * HIDDEN
    assert activations(recomputed, Plan.of(recomputed.parallel, one.model), 0) == kept + layer + mask + top
    staged = config_of(dict(pipeline=3, micro_batch_num=8))
    kept = [activations(staged, Plan.of(staged.parallel, staged.model), stage) for stage in range(3)]
    assert [of_stage - layer - mask - 7 * batch for of_stage in kept] == [0, 2 * HIDDEN, top]


def test_what_the_compiler_keeps_to_compute_the_rest_again():
    """Of 4 layers no LayerNorm's output; and sliced, half of each second LayerNorm's input on each tensor rank, and of
    several micro-batches also of the inputs of blocks 1 and 2: the query layer's comes from the last LayerNorm."""

    def kept(**settings):
        config = config_of(dict(tensor=2, recompute=True, micro_batch_num=2) | settings, dict(num_layers=4))
        return activations(config, Plan.of(config.parallel, config.model), 0)

    compiled = dict(device_target="Ascend")
    sliced = compiled | dict(recompute_slice_activation=True)
    assert kept() - kept(**compiled) == 2 * 4 * HIDDEN
    assert kept(**compiled) - kept(**sliced) == (4 + 2) * HIDDEN // 2
    assert kept(**compiled, micro_batch_num=1) - kept(**sliced, micro_batch_num=1) == 4 * HIDDEN // 2


def test_the_compiler_s_pipeline_keeps_each_micro_batch_in_flight():
    """Three on the first of three stages, one on the last; with recompute of each a layer's two inputs."""
    parallel = dict(pipeline=3, micro_batch_num=8, device_target="Ascend", world_size=24, data=8)
    layer, batches, mask = layer_activations(config_of(), 0), 8 * 2 * 16 * (4 + 4 + 16), 2 * 16 * 16 * 4
    for recompute, kept, again in ((False, layer, 0), (True, 2 * HIDDEN, layer)):
        config = config_of(parallel | dict(recompute=recompute))
        plan = Plan.of(config.parallel, config.model)
        for stage, in_flight in ((0, 3), (1, 2)):
            assert activations(config, plan, stage) == in_flight * kept + again + batches + mask


def test_what_a_stage_keeps_with_sequence_parallel():
    """Its own tokens of what comes in, and of what goes into the final norm."""
    staged = dict(pipeline=3, micro_batch_num=8, tensor=2)
    plain, spread = (config_of(staged | dict(sequence_parallel=on)) for on in (False, True))
    layer = layer_activations(plain, 0) - layer_activations(spread, 0)
    plan = Plan.of(plain.parallel, plain.model)
    less = [activations(plain, plan, stage) - activations(spread, plan, stage) for stage in range(3)]
    assert [one - layer for one in less] == [0, 2 * HIDDEN // 2, HIDDEN // 2]


def test_tensor_parallel_sends():
    """4 AllReduces a layer, one each for embedding, queries' gradient and head's, two numbers a token for the loss, and
    each rank's largest logit."""
    config = config_of(dict(tensor=2))
    number_a_token = 2 * 16 * 4
    assert payloads(config) == {
        ("tensor", "AllReduce", 2): (4 * 3 + 3) * HIDDEN + 2 * number_a_token,
        ("tensor", "AllGather", 2): 2 * number_a_token,
    }
    twice = payloads(config_of(dict(tensor=2), accumulation_steps=2))
    assert twice == {key: 2 * payload for key, payload in payloads(config).items()}


def test_a_whole_vocabulary_is_held_and_sends_nothing():
    """All 48 words, not 24, and their logits; of the sums those of the layers and of the queries' gradient are left.
    With sequence parallel the head's input is gathered, and has no sum of gradients."""
    parts, whole = (config_of(dict(tensor=2, vocab_parallel=cut)) for cut in (True, False))
    assert held_by(whole)[0] - held_by(parts)[0] == 24 * 32
    plan = Plan.of(whole.parallel, whole.model)
    logits = 2 * 2 * 16 * 48 * 4
    assert activations(whole, plan, 0) - activations(parts, Plan.of(parts.parallel, parts.model), 0) == logits // 2
    assert payloads(whole) == {("tensor", "AllReduce", 2): (4 * 3 + 1) * HIDDEN}
    assert payloads(config_of(dict(tensor=2, sequence_parallel=True, vocab_parallel=False))) == {
        ("tensor", "AllReduce", 2): HIDDEN + 4 * (3 * 6 * 32 + 64),
        ("tensor", "ReduceScatter", 2): 12 * HIDDEN,
        ("tensor", "AllGather", 2): 14 * HIDDEN,
    }


def test_experts_add_up_their_own_rows():
    """One layer of three has experts, with 20 places a sequence of 16 in the place of 16 rows."""
    experts = payloads(config_of(dict(tensor=2), dict(num_experts=4, expert_interval=3)))
    more = experts["tensor", "AllReduce", 2] - payloads(config_of(dict(tensor=2)))["tensor", "AllReduce", 2]
    assert more == 2 * 2 * (20 - 16) * 32 * 4


def test_a_forward_pass_that_is_computed_again_leaves_out_the_last_sum_of_a_layer():
    """That of attention is needed again; that of a feed-forward layer is not, that of experts is by their router."""

    def again(**model):
        plain, recomputed = (payloads(config_of(dict(tensor=2, recompute=on), model)) for on in (False, True))
        return recomputed["tensor", "AllReduce", 2] - plain["tensor", "AllReduce", 2]

    assert again() == 3 * HIDDEN
    assert again(num_experts=4, expert_interval=3) == 3 * HIDDEN + 2 * 20 * 32 * 4


def test_stages_compute_forward_passes_again_but_for_the_last():
    """Embedding and two sums forward; embedding, one sum and two backward; 4 micro-batches."""
    config = config_of(dict(tensor=2, pipeline=3, micro_batch_num=4))
    first, middle, last = (payloads(config, rank) for rank in (0, 2, 4))
    assert first["tensor", "AllReduce", 2] == 4 * (3 + 4) * HIDDEN
    assert middle["tensor", "AllReduce", 2] == 4 * (2 + 3) * HIDDEN
    assert last["tensor", "AllReduce", 2] == 4 * ((4 + 1 + 1) * HIDDEN + 2 * 2 * 16 * 4)


def test_sequence_parallel_scatters_and_gathers():
    """12 sums of the layers, and the head's gradient; the embedding's gradient is gathered as well. What stays a sum:
    words, the queries' gradient, the loss; and 3 x (4 x 32 in LayerNorms, 2 x 32 in biases) + 64 of the last one."""
    number_a_token = 2 * 16 * 4
    assert payloads(config_of(dict(tensor=2, sequence_parallel=True))) == {
        ("tensor", "AllReduce", 2): 2 * HIDDEN + 2 * number_a_token + 4 * (3 * 6 * 32 + 64),
        ("tensor", "ReduceScatter", 2): 13 * HIDDEN,
        ("tensor", "AllGather", 2): 14 * HIDDEN + 2 * number_a_token,
    }


def test_sequence_parallel_around_experts():
    """Their layer gathers its router's input, and backwards its output's gradient, instead of two sums."""
    experts = dict(num_experts=4, expert_interval=3)
    dense, spread = (payloads(config_of(dict(tensor=2, sequence_parallel=True), model)) for model in ({}, experts))
    assert dense["tensor", "ReduceScatter", 2] - spread["tensor", "ReduceScatter", 2] == 2 * HIDDEN
    assert dense["tensor", "AllGather", 2] == spread["tensor", "AllGather", 2]
    rows = 2 * 2 * 20 * 32 * 4  # their own sums; the projections' biases are theirs, and not of all tokens
    assert spread["tensor", "AllReduce", 2] - dense["tensor", "AllReduce", 2] == rows - 32 * 4


def test_a_stage_hands_on_its_own_tokens():
    plain, spread = (
        payloads(config_of(dict(tensor=2, pipeline=3, micro_batch_num=4, sequence_parallel=on)), 2)
        for on in (False, True)
    )
    assert plain["pipeline", "Exchange", 2] == 2 * spread["pipeline", "Exchange", 2] == 11 * HIDDEN


def test_hidden_states_are_sent_in_the_compute_dtype_but_as_float32_on_a_cpu():
    half = dict(compute_dtype="float16", num_experts=4, expert_interval=3)
    parallel = dict(tensor=2, expert=2, pipeline=2, micro_batch_num=2)
    on_cpu, on_ascend = (
        payloads(config_of(parallel | dict(device_target=target), half), 7) for target in ("CPU", "Ascend")
    )
    for kind in (("pipeline", "Exchange", 2), ("expert", "AlltoAll", 2)):
        assert on_cpu[kind] == 2 * on_ascend[kind] > 0
    loss = 2 * 2 * 2 * 16 * 4  # of two micro-batches, float32 everywhere
    sums = [sent["tensor", "AllReduce", 2] - loss for sent in (on_cpu, on_ascend)]
    assert sums[0] == 2 * sums[1] > 0
    for kind in (("data", "AllReduce", 2), ("tied embedding", "AllReduce", 2), ("tensor", "AllGather", 2)):
        assert on_cpu[kind] == on_ascend[kind] > 0


def test_data_parallel_sends_gradients():
    assert payloads(config_of(dict(data=3))) == {("data", "AllReduce", 3): 4 * 40736}
    assert payloads(config_of(dict(data=2, optimizer_shard=True))) == {
        ("data", "ReduceScatter", 2): 4 * 40736,
        ("data", "AllGather", 2): 4 * 40736,
    }
    odd = payloads(config_of(dict(data=3, optimizer_shard=True)))
    assert odd == {
        ("data", "ReduceScatter", 3): 4 * 1536,
        ("data", "AllGather", 3): 4 * 1536,
        ("data", "AllReduce", 3): 4 * (40736 - 1536),
    }


def test_neighbouring_stages_exchange_hidden_states_and_gradients():
    """4 micro-batches through 3 stages: 4 + 2 exchanges at the first boundary, 4 + 1 at the second."""
    config = config_of(dict(pipeline=3, micro_batch_num=4))
    tied = {("tied embedding", "AllReduce", 2): 4 * 1536}
    assert payloads(config, 0) == {("pipeline", "Exchange", 2): 6 * HIDDEN} | tied
    assert payloads(config, 1) == {("pipeline", "Exchange", 2): 11 * HIDDEN}
    assert payloads(config, 2) == {("pipeline", "Exchange", 2): 5 * HIDDEN} | tied


def test_experts_have_replicas_and_exchanges_of_their_own():
    """A layer of 4 experts: 4 x 8,352 and a router of 128 in place of 8,352; a rank of expert 2 holds 2 of them."""
    config = config_of(dict(data=3, expert=2), dict(num_experts=4, expert_interval=3))
    experts = 2 * 8352
    assert payloads(config) == {
        ("data", "AllReduce", 3): 4 * experts,
        ("data", "AllReduce", 6): 4 * (40736 - 8352 + 128),
        ("expert", "AlltoAll", 2): 4 * 2 * 20 * 32 * 4,
    }  # there and back, forward and backward; 20 places a sequence


@pytest.mark.parametrize(
    "operation, sent",
    [("AllReduce", 150), ("ReduceScatter", 75), ("AllGather", 75), ("AlltoAll", 75), ("Exchange", 100)],
)
def test_what_a_rank_of_a_ring_of_4_sends_of_100_bytes(operation, sent):
    assert Communication("data", operation, 4, 100).sent == sent


def test_bubble():
    assert bubble(1, 8) == 0
    assert math.isclose(bubble(4, 12), 3 / 15)
