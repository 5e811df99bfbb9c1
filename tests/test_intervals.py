"""Bootstrap intervals and paired differences, compared with the binomial distribution."""

import numpy as np
import pytest

from brewclip.intervals import bootstrap_interval, paired_difference


def test_bootstrap_interval_of_a_proportion_is_the_binomial_one():
    low, high = bootstrap_interval(np.arange(1000) < 300, num_resamples=20_000)
    width = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - width, 0.3 + width), abs=0.002)
    assert bootstrap_interval([1, 1, 1]) == (1.0, 1.0)
    assert bootstrap_interval([0.0, 0.3, 1.0], seed=3) == bootstrap_interval([1.0, 0.0, 0.3], seed=3)


def test_paired_difference_sees_what_unpaired_intervals_hide():
    """One system wins 30 of 1000 queries and loses none: their own intervals overlap."""
    baseline = np.arange(1000) < 500
    better = np.arange(1000) < 530
    difference, low, high = paired_difference(better, baseline)
    assert difference == pytest.approx(0.03) and 0.015 < low < 0.03 < high < 0.045
    assert bootstrap_interval(baseline)[1] > bootstrap_interval(better)[0]
    with pytest.raises(ValueError, match="same ones"):
        paired_difference(better, baseline[:10])
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([])
