"""95% confidence intervals of scores."""

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES, BATCH = 1000, 50  # how many resamples are drawn, and how many of them are in memory at once


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return Wilson's score interval of the share `right` / `count`."""
    interval = stats.binomtest(right, count).proportion_ci(CONFIDENCE, "wilson")
    return float(interval.low), float(interval.high)


def bootstrap(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a weighted mean. The seed is fixed, so repeated calls agree.

    Args:
        values: Float (n,), one value an example.
        weights: Float (n,), their weights.
    """
    if len(values) == 1:  # scipy needs two
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values, weights),
        lambda values, weights, axis: np.average(values, weights=weights, axis=axis),
        n_resamples=RESAMPLES,
        batch=BATCH,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
