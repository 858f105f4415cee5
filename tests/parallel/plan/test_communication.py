"""What a rank sends under a plan, compared with numbers worked out by hand."""

import math

import pytest

from src.parallel.plan.costs import Communication, bubble, rank_memory
from tests.support.plans import HIDDEN, config_of, held_by, payloads


def test_tensor_parallel_sends():
    """Hidden states take 4 AllReduces in each layer, and one each for the embedding, the gradient of the queries and
    the gradient of the head. The loss takes two numbers a token, and the largest logit of each rank."""
    config = config_of(dict(tensor=2))
    number_a_token = 2 * 16 * 4
    assert payloads(config) == {
        ("tensor", "AllReduce", 2): (4 * 3 + 3) * HIDDEN + 2 * number_a_token,
        ("tensor", "AllGather", 2): 2 * number_a_token,
    }
    twice = payloads(config_of(dict(tensor=2), accumulation_steps=2))
    assert twice == {key: 2 * payload for key, payload in payloads(config).items()}


def test_a_whole_vocabulary_is_held_and_sends_nothing():
    """A rank has all 48 words and their logits instead of 24. Only the sums of the layers and of the queries' gradient
    remain. With sequence parallel, the head's input is gathered and needs no sum of gradients."""
    parts, whole = (config_of(dict(tensor=2, vocab_parallel=cut)) for cut in (True, False))
    assert held_by(whole)[0] - held_by(parts)[0] == 24 * 32
    logits = 2 * 2 * 16 * 48 * 4
    assert [rank_memory(config, 0).logits for config in (whole, parts)] == [logits, logits // 2]
    assert payloads(whole) == {("tensor", "AllReduce", 2): (4 * 3 + 1) * HIDDEN}
    assert payloads(config_of(dict(tensor=2, sequence_parallel=True, vocab_parallel=False))) == {
        ("tensor", "AllReduce", 2): HIDDEN + 4 * (3 * 6 * 32 + 64),
        ("tensor", "ReduceScatter", 2): 12 * HIDDEN,
        ("tensor", "AllGather", 2): 14 * HIDDEN,
    }


def test_experts_add_up_their_own_rows():
    """One of three layers has experts. A sequence of 16 tokens then sums 20 rows instead of 16."""
    experts = payloads(config_of(dict(tensor=2), dict(num_experts=4, expert_interval=3)))
    more = experts["tensor", "AllReduce", 2] - payloads(config_of(dict(tensor=2)))["tensor", "AllReduce", 2]
    assert more == 2 * 2 * (20 - 16) * 32 * 4


def test_a_layer_that_is_computed_again_sends_the_outputs_of_experts_only():
    """What follows the sums of attention and of a dense feed-forward layer is kept, so they are not needed again. The
    router's gradient needs the sum of the experts."""

    def again(**model):
        plain, recomputed = (payloads(config_of(dict(tensor=2, recompute=on), model)) for on in (False, True))
        return recomputed["tensor", "AllReduce", 2] - plain["tensor", "AllReduce", 2]

    assert again() == 0
    assert again(num_experts=4, expert_interval=3) == 2 * 20 * 32 * 4


def test_stages_compute_forward_passes_again_but_for_the_last():
    """For each of 4 micro-batches, the first stage sums the embedding and two results forward, then the embedding and
    one result again, and two gradients backward."""
    config = config_of(dict(tensor=2, pipeline=3, micro_batch_num=4))
    first, middle, last = (payloads(config, rank) for rank in (0, 2, 4))
    assert first["tensor", "AllReduce", 2] == 4 * (3 + 4) * HIDDEN
    assert middle["tensor", "AllReduce", 2] == 4 * (2 + 3) * HIDDEN
    assert last["tensor", "AllReduce", 2] == 4 * ((4 + 1 + 1) * HIDDEN + 2 * 2 * 16 * 4)


def test_sequence_parallel_scatters_and_gathers():
    """The 12 sums of the layers and the gradient of the head become ReduceScatters. The embedding's gradient is
    gathered too. AllReduces remain for the words, the queries' gradient and the loss, and for the gradients of
    LayerNorms and biases: 3 x (4 x 32 + 2 x 32) + 64 of the final LayerNorm."""
    number_a_token = 2 * 16 * 4
    assert payloads(config_of(dict(tensor=2, sequence_parallel=True))) == {
        ("tensor", "AllReduce", 2): 2 * HIDDEN + 2 * number_a_token + 4 * (3 * 6 * 32 + 64),
        ("tensor", "ReduceScatter", 2): 13 * HIDDEN,
        ("tensor", "AllGather", 2): 14 * HIDDEN + 2 * number_a_token,
    }


def test_sequence_parallel_around_experts():
    """A layer with experts gathers the router's input, and backwards the gradient of its output, instead of two
    sums."""
    experts = dict(num_experts=4, expert_interval=3)
    dense, spread = (payloads(config_of(dict(tensor=2, sequence_parallel=True), model)) for model in ({}, experts))
    assert dense["tensor", "ReduceScatter", 2] - spread["tensor", "ReduceScatter", 2] == 2 * HIDDEN
    assert dense["tensor", "AllGather", 2] == spread["tensor", "AllGather", 2]
    rows = 2 * 2 * 20 * 32 * 4  # sums of the experts' rows; their projection bias is not one of the summed biases
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
    loss = 2 * 2 * 2 * 16 * 4  # two micro-batches; it is always float32
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
    """4 micro-batches go through 3 stages with 4 + 2 exchanges at the first boundary and 4 + 1 at the second."""
    config = config_of(dict(pipeline=3, micro_batch_num=4))
    tied = {("tied embedding", "AllReduce", 2): 4 * 1536}
    assert payloads(config, 0) == {("pipeline", "Exchange", 2): 6 * HIDDEN} | tied
    assert payloads(config, 1) == {("pipeline", "Exchange", 2): 11 * HIDDEN}
    assert payloads(config, 2) == {("pipeline", "Exchange", 2): 5 * HIDDEN} | tied


def test_chunks_send_as_stages_do():
    """Each of 4 chunks has a layer. Forward, the first sums the embedding and two results; the second and the third two
    results. All three compute that again but for a last sum, and sum two gradients backward. Between them and around
    the ring are 18 exchanges (tests/parallel/plan/test_schedule.py)."""
    parallel = dict(tensor=2, pipeline=2, virtual_stages=2, micro_batch_num=4)
    first, second = (payloads(config_of(parallel, dict(num_layers=4)), rank) for rank in (0, 2))
    assert first["tensor", "AllReduce", 2] == 4 * ((3 + 4) + (2 + 3)) * HIDDEN
    assert second["tensor", "AllReduce", 2] == 4 * ((2 + 3 + 4 + 1 + 1) * HIDDEN + 2 * 2 * 16 * 4)
    assert first["pipeline", "Exchange", 2] == second["pipeline", "Exchange", 2] == 18 * HIDDEN
    experts = dict(num_layers=4, num_experts=4, expert_interval=2)  # in the last layer of each lap, both on stage 1
    spread = payloads(config_of(parallel | dict(expert=2), experts), 4)
    assert spread["expert", "AlltoAll", 2] == 4 * (3 + 2) * 2 * 2 * 20 * 32 * 4


def test_experts_have_replicas_and_exchanges_of_their_own():
    """A layer of 4 experts has 4 x 8,352 numbers and a router of 128 instead of 8,352. Each rank holds 2 experts."""
    config = config_of(dict(data=3, expert=2), dict(num_experts=4, expert_interval=3))
    experts = 2 * 8352
    assert payloads(config) == {
        ("data", "AllReduce", 3): 4 * experts,
        ("data", "AllReduce", 6): 4 * (40736 - 8352 + 128),
        ("expert", "AlltoAll", 2): 4 * 2 * 20 * 32 * 4,
    }  # two AlltoAlls forward and two backward, with 20 places in each sequence


@pytest.mark.parametrize(
    "operation, sent",
    [("AllReduce", 150), ("ReduceScatter", 75), ("AllGather", 75), ("AlltoAll", 75), ("Exchange", 100)],
)
def test_what_a_rank_of_a_ring_of_4_sends_of_100_bytes(operation, sent):
    assert Communication("data", operation, 4, 100).sent == sent


def test_bubble():
    assert bubble(1, 8) == 0
    assert math.isclose(bubble(4, 12), 3 / 15)
    assert math.isclose(bubble(4, 12, 3), 3 / 39)
