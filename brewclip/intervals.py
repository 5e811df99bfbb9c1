"""Bootstrap confidence intervals of a mean over queries, and of the paired difference of two systems."""

import numpy as np
from numpy.typing import ArrayLike

NUM_RESAMPLES = 1000


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over queries.

    Drawing n of n queries with replacement means drawing how often each distinct value occurs: one multinomial draw
    per resample, the same distribution and far cheaper, as recalls have two values.

    Args:
        values: (n,) one number per query.
        confidence: level of the interval, in (0, 1).
        num_resamples: number of resampled means.
        seed: seed of the resampling.

    Raises:
        ValueError: if there are no values, or one is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"the bootstrap wants a list of finite numbers, got an array of shape {array.shape}")
    distinct, counts = np.unique(array, return_counts=True)
    rng = np.random.default_rng(seed)
    means = rng.multinomial(len(array), counts / len(array), size=num_resamples) @ distinct / len(array)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(
    values: ArrayLike, baseline: ArrayLike, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean difference of two systems on the same queries, with its bootstrap interval.

    Args:
        values: (n,) one number per query, such as `RetrievalResult.hits`.
        baseline: (n,) one number per query of the other system, in the same order.
        num_resamples: as in `bootstrap_interval`.
        seed: seed of the resampling.

    Returns:
        Mean of values - baseline, and its 95 % interval from queries resampled jointly for both systems.

    Raises:
        ValueError: if the numbers of queries differ.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the systems answered {ours.shape} and {theirs.shape} queries; a pair needs the same ones")
    low, high = bootstrap_interval(ours - theirs, num_resamples=num_resamples, seed=seed)
    return float(np.mean(ours - theirs)), low, high
