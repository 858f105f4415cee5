import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.nn.dropout import Dropout, DropoutKeys, dropout_keys, number_sites
from tests.support.programs import TINY, random_model

RATE = 0.3
ROWS, WIDTH = 4, 50_000


def kept(keys, site=0, width=WIDTH, rate=RATE):
    """Return the mask (rows, width) of a site as 0 and 1."""
    dropout = Dropout(rate)
    dropout.site = site
    return (dropout(Tensor(np.ones((len(keys), width), np.float32)), Tensor(keys)).asnumpy() > 0).astype(int)


def assert_like_coin_flips(values, probability):
    """Check that the mean of 0-1 values is within 4.5 standard deviations of a probability."""
    deviation = np.sqrt(probability * (1 - probability) / values.size)
    assert abs(values.mean() - probability) < 4.5 * deviation


def assert_independent(one, other):
    """Check a 2x2 table by chi-square with 3 degrees of freedom. Chance exceeds 30 once in 700,000 tables."""
    counts = np.bincount((one * 2 + other).ravel(), minlength=4)
    expected = one.size * np.array([RATE * RATE, RATE * (1 - RATE), (1 - RATE) * RATE, (1 - RATE) ** 2])
    assert ((counts - expected) ** 2 / expected).sum() < 30


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_keep_rate_and_scale(rate):
    keys = dropout_keys(0, 0, 0, ROWS)
    values = Dropout(rate)(Tensor(np.ones((ROWS, WIDTH), np.float32)), Tensor(keys)).asnumpy()
    assert_like_coin_flips(values > 0, 1 - rate)
    low, high = np.unique(values)
    assert low == 0 and high == pytest.approx(1 / (1 - rate), rel=1e-6)


def keys_of_graph(seed, step, rows, rank=0):
    return DropoutKeys(seed, rank)(Tensor(step, ms.int32), Tensor(np.zeros((rows, 3), np.int32))).asnumpy()


def test_keys_of_the_graph_differ_by_seed_step_and_row_and_not_by_the_number_of_ranks():
    keys = np.concatenate([keys_of_graph(seed, step, 64) for seed in (0, 1, 12345) for step in (0, 1, 2, 10_000)])
    assert len(set(keys.tolist())) == len(keys) == 768
    halves = [keys_of_graph(1, 7, 32, rank) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), keys_of_graph(1, 7, 64))
    masks = [kept(keys_of_graph(seed, step, ROWS)) for seed, step in ((3, 4), (3, 5), (4, 4))]
    for other in (*masks[1:], np.roll(masks[0], 1, axis=0)):
        assert_independent(masks[0], other)
    assert_like_coin_flips(masks[0], 1 - RATE)


@pytest.mark.parametrize("distance", [1, 2, 3, 32, 64, 128, 1024, 4096])
def test_neighbours_are_independent(distance):
    mask = kept(dropout_keys(1, 0, 0, ROWS))
    assert_independent(mask[:, distance:], mask[:, :-distance])


def test_rows_sites_steps_micro_steps_and_seeds_are_independent():
    base = dict(seed=5, step=9, micro_step=0)
    mask = kept(dropout_keys(**base, rows=ROWS))
    for row in range(1, ROWS):
        assert_independent(mask[row], mask[0])
    for site in (1, 40):
        assert_independent(kept(dropout_keys(**base, rows=ROWS), site), mask)
    for change in (dict(seed=6), dict(step=10), dict(step=0), dict(micro_step=1)):
        assert_independent(kept(dropout_keys(**base | change, rows=ROWS)), mask)
    # Keys that differ by 1, or in one bit. A run draws such keys by chance only.
    assert_independent(*kept(np.array([7, 8], np.int32)))
    assert_independent(*kept(np.array([0, -(2**31)], np.int32)))


def test_blocks_of_elements_drop_binomially():
    """The variance of sums over 64 elements shows longer patterns than pairs of elements do."""
    sums = kept(dropout_keys(2, 0, 0, 16)).reshape(16, -1)[:, : WIDTH // 64 * 64].reshape(-1, 64).sum(1)
    assert sums.mean() == pytest.approx(64 * (1 - RATE), rel=0.005)
    assert sums.var() == pytest.approx(64 * RATE * (1 - RATE), rel=0.05)


def test_a_mask_depends_on_its_row_s_key_alone():
    keys = dropout_keys(3, 4, 0, 4)
    whole = kept(keys, site=2)
    np.testing.assert_array_equal(whole, kept(keys, site=2))
    np.testing.assert_array_equal(whole, np.concatenate([kept(keys[:2], 2), kept(keys[2:], 2)]))


def test_shapes_share_the_mask_of_their_rows():
    """Hidden states are (B * S, H), attention weights are (B, A, S, S)."""
    keys, dropout = Tensor(dropout_keys(0, 0, 0, 2)), Dropout(RATE)
    flat = dropout(Tensor(np.ones((2, 24), np.float32)), keys).asnumpy()
    for shape in ((8, 6), (2, 3, 4, 2)):
        np.testing.assert_array_equal(dropout(Tensor(np.ones(shape, np.float32)), keys).asnumpy(), flat.reshape(shape))


def test_without_key_or_rate_nothing_is_dropped():
    x = Tensor(np.ones((2, 100), np.float32))
    assert (Dropout(RATE)(x, None) == 1).all()
    assert (Dropout(0.0)(x, Tensor(dropout_keys(0, 0, 0, 2))) == 1).all()


def test_half_precision_stays_so():
    x = Tensor(np.ones((2, 1000), np.float16))
    values = Dropout(RATE)(x, Tensor(dropout_keys(0, 0, 0, 2)))
    assert values.dtype == ms.float16
    np.testing.assert_array_equal(np.unique(values.asnumpy()), np.float16([0, 1 / (1 - RATE)]))


def test_the_gradient_passes_through_the_same_mask():
    dropout, keys = Dropout(RATE), Tensor(dropout_keys(0, 0, 0, 2))
    x = Tensor(np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32))
    gradient = ops.GradOperation()(dropout)(x, keys)
    np.testing.assert_array_equal(gradient.asnumpy(), dropout(ops.ones_like(x), keys).asnumpy())
    np.testing.assert_allclose(dropout(x, keys).asnumpy(), x.asnumpy() * gradient.asnumpy())


def test_every_dropout_of_a_model_has_its_own_site():
    model, _ = random_model(dropout_rate=0.5)
    sites = [cell.site for _, cell in model.cells_and_names() if isinstance(cell, Dropout)]
    assert sorted(sites) == list(range(1 + 3 * TINY.num_layers))


def test_sites_follow_the_order_of_the_cells():
    cells = nn.SequentialCell([Dropout(0.1), Dropout(0.1)])
    number_sites(cells)
    assert [cell.site for cell in cells] == [0, 1]


def test_a_model_drops_by_row():
    """Rows 0-1 and rows 2-3 alone give the logits of the whole batch. Another step gives other logits."""
    model, _ = random_model(dropout_rate=0.2)
    draw = np.random.default_rng(0)
    ids = Tensor(draw.integers(0, 50, (4, TINY.seq_length)).astype(np.int32))
    positions = Tensor(np.tile(np.arange(TINY.seq_length, dtype=np.int32), (4, 1)))
    mask = Tensor(np.tile(np.tril(np.ones((TINY.seq_length,) * 2, np.int8)), (4, 1, 1)))
    keys = Tensor(dropout_keys(0, 0, 0, 4))
    whole = model(ids, positions, mask, keys).asnumpy()
    halves = [model(ids[part], positions[part], mask[part], keys[part]).asnumpy() for part in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-4)
    other = model(ids, positions, mask, Tensor(dropout_keys(0, 1, 0, 4))).asnumpy()
    assert np.abs(other - whole).mean() > 0.1
