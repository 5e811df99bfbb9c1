"""Logistic regression of a binary outcome on one variable, with Wald intervals, by Newton's method."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z_95 = 1.959964  # of the normal distribution, two-sided
_MAX_STEPS = 50
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class LogisticFit:
    """Fitted model: log-odds of a hit = intercept + slope * x.

    Attributes:
        intercept, slope: maximum likelihood estimates.
        low, high: 95 % Wald interval of the slope.
        covariance: (2, 2) covariance of intercept and slope.
    """

    intercept: float
    slope: float
    low: float
    high: float
    covariance: NDArray[np.float64]

    def predict(self, x: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the probability of a hit at x, (n,), and its 95 % interval, symmetric in log-odds."""
        design = np.stack([np.ones_like(x), x], axis=1)
        odds = design @ np.array([self.intercept, self.slope])
        spread = _Z_95 * np.sqrt(np.einsum("ni,ij,nj->n", design, self.covariance, design))
        return _sigmoid(odds), _sigmoid(odds - spread), _sigmoid(odds + spread)


def fit_logistic(x: NDArray[np.float64], yes: NDArray[np.bool_]) -> LogisticFit:
    """Fit by iteratively reweighted least squares, with Wald intervals from the Fisher information.

    Args:
        x: (n,) finite values.
        yes: (n,) outcomes.

    Raises:
        ValueError: if the slope is undetermined (all x or all outcomes are equal) or infinite (a value of x
            separates the outcomes).
    """
    problem = _separation(x, yes)
    if problem:
        raise ValueError(problem)
    center, scale = float(x.mean()), float(x.std())
    design = np.stack([np.ones(len(x)), (x - center) / scale], axis=1)
    beta = np.array([np.log(yes.mean() / (1 - yes.mean())), 0.0])
    likelihood = _log_likelihood(design @ beta, yes)
    for _ in range(_MAX_STEPS):
        share = _sigmoid(design @ beta)
        information = design.T @ (design * (share * (1 - share))[:, None])
        step = np.linalg.solve(information, design.T @ (yes - share))
        while (found := _log_likelihood(design @ (beta + step), yes)) < likelihood - _TOLERANCE:
            step = step / 2  # Newton may overshoot on nearly separated data
        beta, likelihood = beta + step, found
        if np.abs(step).max() < _TOLERANCE:
            break
    share = _sigmoid(design @ beta)
    covariance = np.linalg.inv(design.T @ (design * (share * (1 - share))[:, None]))
    back = np.array([[1.0, -center / scale], [0.0, 1.0 / scale]])  # to the units of x
    (intercept, slope), covariance = back @ beta, back @ covariance @ back.T
    half = _Z_95 * float(np.sqrt(covariance[1, 1]))
    return LogisticFit(float(intercept), float(slope), float(slope) - half, float(slope) + half, covariance)


def _separation(x: NDArray[np.float64], yes: NDArray[np.bool_]) -> str:
    """Return why there is no finite slope, or an empty string."""
    if not len(x) or x.min() == x.max():
        return f"no slope: all {len(x)} values are equal"
    if yes.all() or not yes.any():
        return f"no slope: all {len(yes)} outcomes are {'yes' if yes.all() else 'no'}"
    with_yes, without = x[yes], x[~yes]
    if with_yes.max() <= without.min() or without.max() <= with_yes.min():
        edge = min(with_yes.max(), without.max())
        return f"no finite slope: the value {edge:.3g} separates every yes from every no"
    return ""


def _log_likelihood(odds: NDArray[np.float64], yes: NDArray[np.bool_]) -> float:
    return float(-np.logaddexp(0.0, np.where(yes, -odds, odds)).sum())


def _sigmoid(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1.0 + np.tanh(0.5 * odds))  # never overflows
