"""Seconds of a step against formulas of papers and numbers computed by hand."""

from dataclasses import replace

import pytest

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.costs import rank_memory
from src.parallel.plan.search.machines import MACHINES, Shares
from src.parallel.plan.search.step_time import Schedule, stage_costs, step_seconds

# A device that computes 1 FLOP, moves 1 byte and sends 1 byte a second, or a fourth of that to other servers.
UNIT = replace(MACHINES["A2"], peak=1.0, bandwidth=1.0, joined=8, inside=1.0, outside=0.25)
H, L, A, S, V, B = 128, 4, 8, 32, 96, 2
N = B * S  # tokens of a micro-batch


def config_of(parallel=None, **model):
    sizes = {"vocab_size": V, "hidden_size": H, "num_layers": L, "num_heads": A, "seq_length": S, "dropout_rate": 0.0}
    sizes |= {"compute_dtype": "float16", "softmax_compute_dtype": "float16", "param_init_dtype": "float16"}
    return RunConfig(
        PanguAlphaConfig(**(sizes | model)),
        DataConfig(),
        TrainingConfig(batch_size=B),
        ParallelConfig(**({"device_target": "Ascend", "attention": "plain"} | (parallel or {}))),
        GenerationConfig(),
    )


def costs(parallel=None, schedule=None, **model):
    return stage_costs(config_of(parallel, **model), UNIT, schedule)


def test_products_with_full_recompute_are_those_of_the_megatron_paper():
    """arXiv 2104.04473, formula 3: 96 B s l h^2 (1 + s / 6h + V / 16 l h)."""
    [cost] = costs({"recompute": "full", "micro_batch_num": 3})
    assert cost.products == pytest.approx(96 * 3 * B * S * L * H**2 * (1 + S / 6 / H + V / 16 / L / H))


def test_selective_recompute_computes_the_scores_again():
    """arXiv 2205.05198, appendix A: 72 B s l h^2 (1 + s / 6h + V / 12 l h), and the two products of scores again."""
    products = {kind: costs({"recompute": kind})[0].products for kind in ("none", "selective")}
    assert products["none"] == pytest.approx(72 * B * S * L * H**2 * (1 + S / 6 / H + V / 12 / L / H))
    assert products["selective"] - products["none"] == pytest.approx(L * 4 * B * S**2 * H)


def test_flash_attention_computes_half_of_the_scores_three_and_a_half_times():
    plain, flash = (costs({"attention": kind, "chip": "A2"})[0] for kind in ("plain", "flash"))
    scores = L * 4 * B * S**2 * H
    assert plain.products - flash.products == pytest.approx((3 - 3.5 / 2) * scores)
    weights = L * B * A * S**2  # in float16: masked, softmax; gradient of softmax
    assert plain.traffic - flash.traffic == pytest.approx(weights * (2 * 2 + 2 * 2 + 4 * 2))
    again = {kind: costs({"attention": "flash", "chip": "A2", "recompute": kind})[0] for kind in ("selective", "full")}
    assert again["selective"].products == flash.products
    norms_and_activation = L * 2 * (4 * N * H + 2 * N * 4 * H)
    assert again["selective"].traffic - flash.traffic == pytest.approx(norms_and_activation)


def test_auto_takes_flash_attention_on_a2_and_a3_alone():
    products = {chip: costs({"attention": "auto", "chip": chip})[0].products for chip in ("auto", "910A", "A2", "A3")}
    assert products["auto"] == products["910A"] > products["A2"] == products["A3"]


def test_traffic_of_one_layer_by_hand():
    """In float16: 10 arrays (N, H) of norms and sums, 8 of heads, 2 (N, F), forward once and backward twice."""
    configs = [config_of({"attention": "flash", "chip": "A2"}, num_layers=number) for number in (3, 4)]
    moved = [stage_costs(config, UNIT)[0].traffic - 2 * rank_memory(config, 0).held for config in configs]
    assert moved[1] - moved[0] == pytest.approx(3 * 2 * (10 * N * H + 8 * N * H + 2 * N * 4 * H))
    logits = 6 * 4 * N * V
    assert moved[0] == pytest.approx(3 * (moved[1] - moved[0]) + logits)


def test_dropout_moves_two_arrays_more_for_each_sum_and_the_masks_of_attention():
    without, with_dropout = (costs(dropout_rate=rate)[0].traffic for rate in (0.0, 0.1))
    weights = L * B * A * S**2
    assert with_dropout - without == pytest.approx(3 * 2 * 4 * L * N * H + weights * (2 * 2 + 1) + weights * 2 * 2)


def test_a_tensor_parallel_rank_sends_two_sums_of_each_layer_forward_and_two_backward():
    [cost] = costs({"tensor": 2, "vocab_parallel": False, "micro_batch_num": 3})
    array = 2 * N * H
    assert cost.messages == pytest.approx(3 * 4 * L * array)  # a ring of 2 sends an AllReduce's array once
    [again] = costs({"tensor": 2, "vocab_parallel": False, "recompute": "full"}, Schedule(sends_again=True))
    assert again.messages == pytest.approx(6 * L * array)
    [hidden] = costs({"tensor": 2, "vocab_parallel": False}, Schedule(hidden_messages=0.5))
    assert hidden.messages == pytest.approx(2 * L * array)
    [vocabulary] = costs({"tensor": 2})
    assert vocabulary.messages == pytest.approx((4 * L + 3) * array)


def test_gradients_travel_once_a_step_and_across_servers_slowly():
    config = config_of({"data": 4, "micro_batch_num": 5})
    sent = 2 * rank_memory(config, 0).parameters * 2 * 3 / 4  # float16, a ring of 4
    assert stage_costs(config, UNIT)[0].messages == pytest.approx(sent)
    assert stage_costs(config, replace(UNIT, joined=2))[0].messages == pytest.approx(4 * sent)
    sharded = config_of({"data": 4, "optimizer_shard": True}, param_init_dtype="float32")
    sent = rank_memory(sharded, 0).parameters * (4 + 2) * 3 / 4  # float32 gradients, updated weights in float16
    assert stage_costs(sharded, UNIT)[0].messages == pytest.approx(sent)


def test_stages_wait_for_each_other_less_with_virtual_stages():
    one = costs({"micro_batch_num": 1, "pipeline": 1}, num_layers=2)[0]
    for virtual in (1, 2):
        first, last = costs({"pipeline": 2, "micro_batch_num": 6}, Schedule(virtual))
        head = 6 * N * H * V
        turns = 6 + 1 / virtual
        assert first.products == pytest.approx(turns * (one.products - head))
        assert last.products == pytest.approx(turns * one.products)
        tied = 4 * V * H
        assert first.messages == last.messages == pytest.approx(turns * virtual * 2 * 2 * N * H + tied)


def test_the_slowest_stage_makes_the_step():
    first, last = costs({"pipeline": 2, "micro_batch_num": 4})
    shares = Shares(0.5, 0.25, 0.125)
    seconds = [2 * cost.products + 4 * cost.traffic + 8 * cost.messages for cost in (first, last)]
    assert step_seconds([first, last], shares) == max(seconds) == seconds[1]
