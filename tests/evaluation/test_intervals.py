"""Confidence intervals, against published values and the normal distribution."""

import math

import numpy as np
import pytest

from src.evaluation import intervals


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (6458, 10000, 0.6364, 0.6551)],
)
def test_wilson(right, count, low, high):
    """Published values: 0 to 0.2775 for 0 of 10, 0.2366 to 0.7634 for 5 of 10."""
    assert intervals.wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_the_bootstrap_is_near_the_normal_interval():
    draw = np.random.default_rng(1)
    values, weights = draw.normal(0.3, 0.2, 2000), draw.integers(1, 5, 2000).astype(float)
    low, high = intervals.bootstrap(values, weights)
    mean = np.average(values, weights=weights)
    half = 1.96 * 0.2 * math.sqrt((weights**2).sum()) / weights.sum()
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=half / 5)
    assert intervals.bootstrap(values, weights) == (low, high)
