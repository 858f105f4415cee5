"""What the compiler's graph keeps alive, compared with numbers worked out by hand and with published limits.

tests/parallel/semi_auto/test_dry_run.py compares the same figures with compiled graphs.
"""

import pytest

from src.common.cli import parse
from src.parallel.plan.compiled_memory import most_alive
from src.parallel.plan.costs import rank_memory
from src.parallel.plan.plan import Plan
from src.training.config import TrainConfig
from tests.support.plans import HIDDEN, config_of

KIB, GB = 1024, 10**9
HALF = dict(compute_dtype="float16")
BATCH = 2 * 16 * (4 + 4 + 4 + 16)  # ids, positions, loss mask and mask of 2 x 16 tokens


def of_rank(parallel=None, model=None, rank=0, **training):
    config = config_of(dict(device_target="Ascend") | (parallel or {}), model, **training)
    plan = Plan.of(config.parallel, config.model)
    return most_alive(config, plan, plan.coordinates(rank))


def test_the_loss_by_hand():
    """A layer keeps both LayerNorms' inputs in float32 (2 x 4 KiB), their outputs (2 x 2 KiB), queries, keys, values
    and their weighted sums (4 x 1 KiB on one of two ranks), units (2 x 4 KiB), and the weights of attention after the
    softmax (4 KiB) and in half precision (2 KiB). Above the layers, the final LayerNorm's input is float32, and the
    inputs of the queries and of the head are not. Five arrays have the size of a chunk's logits, and the first of two
    chunks has left a gradient of the table. The table and the matrices are cast."""
    most = of_rank(dict(tensor=2), HALF | dict(vocab_size=4800))
    layer = (2 * 4 + 2 * 2 + 4 * 1 + 2 * 4 + 4 + 2) * KIB
    assert most.name == "loss"
    assert most.activations == 3 * layer + (4 + 2 + 2) * KIB + BATCH
    assert most.logits == 5 * 16 * 2400 * 4 and most.gradients == 2400 * 32 * 4
    matrices_and_biases = 3 * (1584 + 544 + 2112 + 2080)
    assert most.copies == 2 * (matrices_and_biases + 2400 * 32)


def test_dropout_keeps_two_masks_of_hidden_states_and_one_of_attention():
    plain, dropped = (of_rank(dict(tensor=2), HALF | dict(dropout_rate=rate)) for rate in (0.0, 0.1))
    layer = 2 * 2 * KIB + 2 * KIB  # in place of the weights in half precision come the dropped ones
    assert dropped.activations - plain.activations == 3 * layer + HIDDEN  # and the embedding's mask, in float32


def test_sequence_parallel_halves_what_layernorms_read():
    plain, spread = (of_rank(dict(tensor=2, sequence_parallel=on), HALF) for on in (False, True))
    assert plain.activations - spread.activations == 3 * 4 * KIB + (2 + 1) * KIB


@pytest.mark.parametrize("kind, kept", [("full", 2 * 2), ("selective", 2 * 2 + 3 * 1 + 4)])
def test_what_is_computed_again_is_not_kept(kind, kept):
    """Full recompute keeps the inputs of both LayerNorms, selective also queries, keys, values and the first product of
    the units. A layer that is computed again has three arrays of scores (3 x 16 KiB with 8 times the heads), queries,
    keys, values, weighted sums, and the gradient of its output."""
    model = HALF | dict(num_heads=32)  # attention needs most
    most = of_rank(dict(tensor=2, recompute=kind, pipeline=3, micro_batch_num=8, data=4), model, rank=8)
    again = 3 * 32 + 4 + 2 + (4 if kind == "full" else -4)
    mask = 2 * 16 * 16 * 4
    waiting = 8 - 2  # micro-batches; their masks are those of 4 data-parallel ranks
    assert most.name == "backward"
    assert most.activations == 2 * (kept * KIB + mask) + again * KIB + 8 * BATCH + waiting * 4 * 2 * 16 * 16


@pytest.mark.parametrize("scheduler", ["1f1b", "zero_bubble_v"])
def test_virtual_stages_keep_each_chunk_in_flight(scheduler):
    """The middle one of three stages has 3 micro-batches in flight in each of its chunks, which have a layer each."""
    laps = dict(virtual_stages=2, micro_batch_num=9, pipeline_scheduler=scheduler)
    model = HALF | dict(num_heads=32, num_layers=6)
    most = of_rank(dict(tensor=2, recompute="full", pipeline=3, data=4) | laps, model, rank=8)
    kept, again, mask = 2 * 2 * KIB, (3 * 32 + 4 + 2 + 4) * KIB, 2 * 16 * 16 * 4
    assert most.name == "backward"
    assert most.activations == (3 + 3) * (kept + mask) + again + 9 * BATCH + (9 - 3) * 4 * 2 * 16 * 16


def test_gathered_weights_are_whole_and_serve_all_micro_batches():
    """A middle stage has one layer of 6,320 numbers in matrices and their biases, and 128 in LayerNorms."""
    plan = dict(tensor=2, pipeline=3, data=4)
    gathered, cast = (of_rank(plan | dict(micro_batch_num=8, optimizer_shard=on), HALF, rank=8) for on in (True, False))
    assert gathered.copies == 2 * 6320 + 4 * 128
    assert cast.copies == 2 * 2 * 6320  # each of two micro-batches in flight casts them
    assert of_rank(plan | dict(micro_batch_num=8), HALF | dict(param_init_dtype="float16"), rank=8).copies == 0


def test_the_update_by_hand():
    """It is computed side by side: four float32 arrays of the size of half-precision weights, one of the others."""
    config = config_of(dict(tensor=2, device_target="Ascend"), HALF | dict(param_init_dtype="float16"), batch_size=1)
    memory = rank_memory(config, 0)
    matrices_and_biases, others = 3 * 6320, 3 * 128 + 24 * 32 + 2 * 16 * 32 + 64
    assert memory.moment == "update"
    assert memory.gradients == 4 * (4 * matrices_and_biases + others)
    assert memory.held == 2 * matrices_and_biases + 4 * others + 8 * (matrices_and_biases + others)


def test_the_loss_by_chunks_has_the_logits_of_one_of_them():
    """Four sequences are four chunks. Each of those that are done has a float32 gradient of 48 x 32 numbers."""
    wide = dict(vocab_size=4800)
    most = of_rank(dict(data=2), HALF | wide, batch_size=4)
    assert most.name == "loss" and most.logits == 5 * 16 * 4800 * 4 and most.gradients == 3 * 4800 * 32 * 4


def test_fused_attention_keeps_statistics_in_place_of_weights():
    """8 float32 numbers twice for each of 8 x 16 tokens and 2 heads. With dropout also a bit for each weight, and a
    mask for all layers. The host sends ends of documents, or the documents' numbers, in place of a mask."""
    flash = dict(tensor=2, attention="flash", chip="A2")
    model, tokens = HALF | dict(hidden_size=64, vocab_size=480), 8 * 16
    plain, ends = (of_rank(parallel, model, batch_size=8) for parallel in (dict(tensor=2), flash))
    statistics, pairs, mask = 2 * 8 * 4 * tokens * 2, tokens * 16 * 2, tokens * 16
    assert plain.name == ends.name == "loss"
    assert plain.activations - ends.activations == 3 * ((4 + 2) * pairs - statistics) + mask - 8 * 64 * 8
    drops = model | dict(attention_dropout_rate=0.1)
    plain, numbers = (of_rank(parallel, drops, batch_size=8) for parallel in (dict(tensor=2), flash))
    assert plain.name == numbers.name == "loss"
    kept = (4 + 2 + 2) * pairs - statistics - pairs // 8
    assert plain.activations - numbers.activations == 3 * kept + mask - tokens * 4 - mask


PUBLISHED = "--parallel.device_target=Ascend", "--model.compute_dtype=float16", "--parallel.optimizer_shard"


@pytest.mark.parametrize(
    "limit, flags",
    [
        (30 * GB, ["--mode=2.6B", "--parallel.data=8", "--training.batch_size=16"]),
        (31 * GB, ["--mode=13B", "--parallel.data=4", "--parallel.tensor=4", "--training.batch_size=8"]),
    ],
)
def test_published_plans_fit_their_limits(limit, flags):
    """The two recipes of MindFormers for Ascend 910A; docs/parallel.md has their sources. Here the loss works by
    chunks, which leaves room."""
    config = parse(TrainConfig, "train.py", [*PUBLISHED, "--parallel.recompute=full", *flags])
    assert 0.6 * limit < rank_memory(config, 0).total < limit
