"""The estimate of activations, compared with numbers worked out by hand and with a published formula."""

import pytest

from src.parallel.plan.explicit_memory import activations, kept_by_layer, layer_activations, logits
from src.parallel.plan.plan import Plan
from tests.support.plans import HIDDEN, config_of


def plain(parallel=None, model=None):
    """Return settings with plain attention."""
    return config_of((parallel or {}) | dict(cpu_kernels=False), model or {})


def test_compiled_attention_keeps_a_number_for_each_token_and_head():
    """It keeps 2 x 4 heads x 16 numbers in place of the weights, and no mask. `selective`
    computes plain attention again, but not the compiled one."""
    weights, numbers, mask = 2 * 4 * 16 * 16 * 4, 2 * 4 * 16 * 4, 2 * 16 * 16 * 4
    for recompute, kept in (("none", 3 * (weights - numbers)), ("selective", weights - 4 * numbers)):
        settings = dict(recompute=recompute)
        plan = Plan.of(config_of().parallel, config_of().model)
        less = activations(plain(settings), plan, 0) - activations(config_of(settings), plan, 0)
        assert less == kept + mask
    assert layer_activations(plain(), 0) - layer_activations(config_of(), 0) == weights - numbers
    drops = dict(dropout_rate=0.1)
    assert layer_activations(plain({}, drops), 0) - layer_activations(config_of({}, drops), 0) == 3 * weights - numbers
    half = dict(softmax_compute_dtype="float16")  # has no kernel
    assert layer_activations(plain({}, half), 0) == layer_activations(config_of({}, half), 0)


def test_a_layer_s_activations_by_hand():
    """With 2 x 16 tokens, eight tensors have 4 KiB each: the input, the input of the second LayerNorm, the outputs of
    both LayerNorms, queries, keys, values, and the weighted sum of values. The feed-forward units have 2 x 16 KiB, and
    the attention weights of 2 x 4 heads x 16 x 16 have 8 KiB."""
    kib = 1024
    assert layer_activations(plain(), 0) == (4 + 4) * 4 * kib + 2 * 16 * kib + 8 * kib
    dropout = plain(model=dict(dropout_rate=0.1))  # two masks, and for the attention weights a mask and the result
    assert layer_activations(dropout, 0) == layer_activations(plain(), 0) + 2 * 4 * kib + 2 * 8 * kib
    without = plain(model=dict(dropout_rate=0.1, attention_dropout_rate=0.0))
    assert layer_activations(without, 0) == layer_activations(plain(), 0) + 2 * 4 * kib
    tensor = plain(dict(tensor=2))
    assert layer_activations(tensor, 0) == 4 * 4 * kib + (4 * 4 + 2 * 16 + 8) * kib // 2
    sequence = dict(tensor=2, sequence_parallel=True)  # halves both inputs, and with dropout both masks
    assert layer_activations(tensor, 0) - layer_activations(plain(sequence), 0) == 4 * kib
    tensor, sequence = (plain(parallel, dict(dropout_rate=0.1)) for parallel in (dict(tensor=2), sequence))
    assert layer_activations(tensor, 0) - layer_activations(sequence, 0) == 8 * kib


def test_an_expert_layer_s_activations_by_hand():
    """A sequence of 16 tokens has 4 experts x ceil(1.25 * 16 / 4) = 20 places. Each place has a row of hidden size in
    and out, and a row of units before and after the activation. The dispatch and combine tables are 2 x 16 x 20
    each."""
    experts = plain(model=dict(num_experts=4, expert_interval=2))
    rows = 2 * 20
    expected = 8 * 4096 + 8192 + rows * (2 * 32 + 2 * 128) * 4 + 2 * (2 * 16 * 20) * 4
    assert layer_activations(experts, 1) == expected
    assert layer_activations(experts, 0) == layer_activations(plain(), 0)
    parts = [
        plain(dict(tensor=2, sequence_parallel=on), dict(num_experts=4, expert_interval=2, dropout_rate=0.1))
        for on in (False, True)
    ]  # sequence parallel does not cut the dropout mask of the experts' result
    assert layer_activations(parts[0], 1) - layer_activations(parts[1], 1) == 3 * HIDDEN // 2


def test_bfloat16_on_a_cpu_keeps_float32_activations_and_rounded_operands():
    """32 tokens, hidden size 32, 128 units, 48 words: 2 bytes for each number of the largest first and second operand,
    (32, 128) and (32, 128), and of the largest gradient, (32, 128)."""
    full, half = config_of(), config_of(model=dict(compute_dtype="bfloat16"))
    plan = Plan.of(full.parallel, full.model)
    assert layer_activations(half, 0) == layer_activations(full, 0)
    assert activations(half, plan, 0) == activations(full, plan, 0) + 2 * 3 * 32 * 128
    on_ascend = config_of(dict(device_target="Ascend"), dict(compute_dtype="bfloat16"))
    assert layer_activations(on_ascend, 0) < layer_activations(full, 0)
    assert activations(on_ascend, plan, 0) < activations(full, plan, 0)


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_a_layer_s_activations_are_those_of_megatron(tensor):
    """Equation 2 of Korthikanti et al. (arXiv 2205.05198) without dropout: s b h (8 + 24 / t) + 2 a s^2 b / t bytes."""
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
    """Besides its layers, a stage keeps ids, positions and documents of each micro-batch, and one mask. The last
    stage also keeps the inputs of the final LayerNorm, the queries and the head, the logits and their gradient. A
    middle stage also keeps the input of each micro-batch in flight."""
    layer, top, of_logits = layer_activations(plain(), 0), 3 * HIDDEN, 2 * 2 * 16 * 48 * 4
    batch = 2 * 16 * (4 + 4 + 4)
    mask = batch + 2 * 16 * 16 * 4
    one = plain()
    plan = Plan.of(one.parallel, one.model)
    assert activations(one, plan, 0) == 3 * layer + mask + top and logits(one, plan, 0) == of_logits
    kept = (2 + 2) * 3 * HIDDEN
    assert activations(plain(dict(recompute="full")), plan, 0) == kept + layer + mask + top
    staged = plain(dict(pipeline=3, micro_batch_num=8))
    plan = Plan.of(staged.parallel, staged.model)
    kept = [activations(staged, plan, stage) for stage in range(3)]
    assert [of_stage - layer - mask - 7 * batch for of_stage in kept] == [0, 2 * HIDDEN, top]
    assert [logits(staged, plan, stage) for stage in range(3)] == [0, 0, of_logits]


def test_what_selective_recompute_does_not_keep():
    """The 8 KiB of attention weights, and the 16 KiB of units after the activation."""
    selective = plain(dict(recompute="selective"))
    assert layer_activations(selective, 0) - kept_by_layer(selective, 0) == (8 + 16) * 1024


def test_what_a_stage_keeps_of_its_chunks():
    """Four chunks of a layer. A rank keeps the tensors of one of them, and of the two in the middle the input of each
    micro-batch in flight: (3, 2) on the first stage, (2, 1) on the last."""
    batches, mask = 8 * 2 * 16 * (4 + 4 + 4), 2 * 16 * 16 * 4
    layer, top = layer_activations(plain(), 0), 3 * HIDDEN
    config = plain(dict(pipeline=2, virtual_stages=2, micro_batch_num=8), dict(num_layers=4))
    plan = Plan.of(config.parallel, config.model)
    kept = [activations(config, plan, stage) - batches - mask for stage in (0, 1)]
    assert kept == [layer + 2 * HIDDEN, layer + 2 * HIDDEN + top]


def test_what_a_stage_keeps_with_sequence_parallel():
    """It keeps only the rank's own tokens of the stage's input and of the final LayerNorm's input."""
    staged = dict(pipeline=3, micro_batch_num=8, tensor=2)
    plain, spread = (config_of(staged | dict(sequence_parallel=on)) for on in (False, True))
    layer = layer_activations(plain, 0) - layer_activations(spread, 0)
    plan = Plan.of(plain.parallel, plain.model)
    less = [activations(plain, plan, stage) - activations(spread, plan, stage) for stage in range(3)]
    assert [one - layer for one in less] == [0, 2 * HIDDEN // 2, HIDDEN // 2]
