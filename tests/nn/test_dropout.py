import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.nn.dropout import Dropout, DropoutKeys, HashMask, dropout_keys, number_sites
from src.nn.product_mask import ProductMask, use_product_masks
from tests.support.programs import TINY, random_model

RATE = 0.3
ROWS, WIDTH = 4, 50_000


@pytest.fixture(params=[HashMask, ProductMask], autouse=True)
def kind(request, monkeypatch):
    """Run each test with the mask of a CPU and with that of accelerators, whose operators a CPU has too."""
    monkeypatch.setattr("src.nn.dropout.HashMask", request.param)
    return request.param


def kept(keys, site=0, shape=None, rate=RATE, part=0):
    """Return the mask of a site as 0 and 1, for one row of WIDTH elements a key or another shape."""
    dropout = Dropout(rate)
    dropout.site, dropout.part = site, part
    x = np.ones(shape or (len(keys), WIDTH), np.float32)
    return (dropout(Tensor(x), Tensor(keys)).asnumpy() > 0).astype(int)


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


@pytest.mark.parametrize("shape", [(2 * 12, 20), (2, 4, 6, 6)])
def test_parts_of_tokens_or_heads_have_the_mask_of_the_whole(shape):
    """Hidden states are (B * S, H), attention weights are (B, A, S, S)."""
    keys = dropout_keys(0, 0, 0, 2)
    whole = kept(keys, 3, shape).reshape(2, -1, shape[-1])
    half = (shape[0] // 2, shape[1]) if len(shape) == 2 else (shape[0], shape[1] // 2, *shape[2:])
    parts = [kept(keys, 3, half, part=part).reshape(2, -1, shape[-1]) for part in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


def test_shapes_share_the_mask_of_their_rows(kind):
    """They do on a CPU."""
    if kind is ProductMask:
        pytest.skip("the tree of accelerators follows the axes")
    keys, dropout = Tensor(dropout_keys(0, 0, 0, 2)), Dropout(RATE)
    flat = dropout(Tensor(np.ones((2, 24), np.float32)), keys).asnumpy()
    for shape in ((8, 6), (2, 3, 4, 2)):
        np.testing.assert_array_equal(dropout(Tensor(np.ones(shape, np.float32)), keys).asnumpy(), flat.reshape(shape))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rows_and_columns_of_a_batch_are_independent(rate):
    """A correlation of n pairs deviates by 1 / sqrt(n), and 32,640 of them from 0 by 6 of these hardly ever. Of the
    rows of accelerators, a pair in a million is alike, so only the spread of their correlations is tested."""
    mask = kept(dropout_keys(4, 2, 0, 2), 7, (2 * 2048, 256), rate)
    values = (mask - (1 - rate)) / np.sqrt(rate * (1 - rate))
    of_columns, of_rows = (
        (one.T @ one / np.sqrt(len(one)))[np.triu_indices(256, 1)] for one in (values, values[:256].T)
    )
    assert np.abs(of_columns).max() < 6
    for correlations in (of_columns, of_rows):
        assert correlations.std() == pytest.approx(1, abs=0.03)
    assert_like_coin_flips(mask, 1 - rate)


@pytest.mark.parametrize("shape", [(2 * 3, 8192), (2, 3, 4, 5)])
def test_the_mask_of_accelerators_by_its_definition(shape, kind):
    """It is computed here by NumPy: no product reaches 2^31, and float32 divides exactly."""
    if kind is HashMask:
        pytest.skip("of the other mask")

    def mixed(words):
        for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            words = ((words ^ (words >> shift)) * multiplier) % 2**32
        return words ^ (words >> 16)

    def product(number, words, factors):
        products = (number[None].astype(np.int64) ^ words[:, None]) * factors[:, None]
        assert products.max() < 2**31
        return products.ravel()

    def numbers(words):
        return mixed(np.asarray(words, np.int64) * 0x9E3779B1 % 2**32)

    keys = dropout_keys(1, 2, 3, 2)
    high = np.floor(np.float32(keys & ~0xFFFF) / np.float32(2**16)).astype(np.int64) & 0xFFFF
    middle = (((keys & 0xFFFF) ^ high) * 0x79B1) & 0xFFFF00
    words, factors = np.floor(np.float32(middle) / np.float32(2**8)).astype(np.int64), (high & 0x7FFE) + 1
    axes = [3, 2] if len(shape) == 2 else [3, 4]  # two blocks of 4,096 columns; or heads and queries
    for children in (np.array([6]), *map(np.arange, axes)):
        both = (product(numbers(2 * children + kind) & 0xFFFF, words, factors) for kind in (0, 1))
        words, factors = next(both) & 0xFFFF, (next(both) & 0x7FFE) + 1
    order = np.argsort(numbers(np.arange(4096)), kind="stable")[: 4096 if len(shape) == 2 else 5]
    last = product(order + (numbers(order + 4096) & 7) * 2**13, words, factors) & 0xFFFF
    np.testing.assert_array_equal(kept(keys, 6, shape), (last >= int(RATE * 2**16)).reshape(shape))


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


def test_every_dropout_of_a_model_has_its_own_site_and_may_have_another_mask():
    model, _ = random_model(dropout_rate=0.5)
    use_product_masks(model)
    sites = [cell.site for _, cell in model.cells_and_names() if isinstance(cell, Dropout)]
    assert sorted(sites) == list(range(1 + 3 * TINY.num_layers))
    masks = {type(cell.mask) for _, cell in model.cells_and_names() if isinstance(cell, Dropout)}
    assert masks == {ProductMask}


def test_attention_may_have_its_own_rate():
    model, _ = random_model(dropout_rate=0.5, attention_dropout_rate=0.0)
    rates = {name: cell.rate for name, cell in model.cells_and_names() if isinstance(cell, Dropout)}
    assert {rate for name, rate in rates.items() if ".core." in name} == {0.0}
    assert [rate for name, rate in rates.items() if ".core." not in name] == [0.5] * (1 + 2 * TINY.num_layers)
    assert model.config.has_dropout and random_model(dropout_rate=0.1)[0].config.attention_dropout == 0.1


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
