"""Logistic regression on features of clips, with the regularisation chosen on the speakers that it learns from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

INVERSE_REGULARISATION = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 3))  # 1e-4 to 10
_NUM_FOLDS = 5
_MAX_ITERATIONS = 2_000
_SMALLEST_LOG_PROBABILITY = -30.0  # also of an emotion without training clips: equal for every C, it decides nothing


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features as they come.

    Attributes:
        weight: (K, D).
        bias: (K,).
        classes: (K,) index of the emotion that each row stands for.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes: NDArray[np.int64]

    def logits(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the logits (n, K) of features (n, D)."""
        return features.astype(np.float64) @ self.weight.T + self.bias

    def predict(self, features: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class index of each row of features (n, D)."""
        return self.classes[self.logits(features).argmax(axis=1)]

    def loss(self, features: NDArray[Any], targets: NDArray[np.int64]) -> float:
        """Return the mean log loss on features (n, D) with class indices (n,)."""
        logits = self.logits(features)
        likelihoods = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        own = np.where(targets[:, None] == self.classes, likelihoods, -np.inf).max(axis=1)
        return float(-np.maximum(own, _SMALLEST_LOG_PROBABILITY).mean())


@dataclass(frozen=True)
class _RowSpace:
    """Standardised training rows in an orthonormal basis of the space that they span.

    The weights of a regression with L2 penalty lie in this space, so it loses nothing, and has no more dimensions than
    there are rows.

    Attributes:
        scaler: standardisation.
        basis: (R, D).
        rows: (n, R).
        labels: (n,) class indices.
    """

    scaler: StandardScaler
    basis: NDArray[np.float64]
    rows: NDArray[np.float64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, features: NDArray[Any], targets: NDArray[np.int64]) -> "_RowSpace":
        """Build it from the views (views, n, D), each with the targets (n,)."""
        scaler = StandardScaler()
        rows = scaler.fit_transform(np.concatenate(list(features)).astype(np.float64))
        labels = np.tile(targets, len(features))
        if rows.shape[1] <= len(rows):
            return cls(scaler, np.eye(rows.shape[1]), rows, labels)
        left, lengths, basis = np.linalg.svd(rows, full_matrices=False)
        return cls(scaler, basis, left * lengths, labels)

    def fit(self, strength: float) -> LinearProbe:
        """Fit multinomial logistic regression."""
        regression = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(self.rows, self.labels)
        weight = regression.coef_ @ self.basis / self.scaler.scale_
        bias = regression.intercept_ - weight @ self.scaler.mean_
        if len(weight) == 1:  # two emotions: the second against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return LinearProbe(weight, bias, regression.classes_)


def fit_probe(features: NDArray[Any], targets: NDArray[np.int64], strength: float) -> LinearProbe:
    """Fit multinomial logistic regression on standardised features (views, n, D); each view has the targets (n,)."""
    return _RowSpace.of(features, targets).fit(strength)


def choose_regularisation(features: NDArray[Any], targets: NDArray[np.int64], speakers: NDArray[Any]) -> float:
    """Choose the regularisation by cross-validation over speakers.

    Folds are compared by log loss: the accuracy of a few speakers ties over decades of C (see docs/LOG.md). The
    standard error is of the difference from the best, paired by fold, as folds differ more than values of C do.

    Source: the rule of one standard error (Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3).

    Args:
        features: (views, n, D); view 0 holds the original clips, the only ones used for validation.
        targets: (n,) class indices.
        speakers: (n,) names.

    Returns:
        C from `INVERSE_REGULARISATION`: the strongest regularisation within one standard error of the best.
    """
    losses = [_losses(features, targets, learn, validate) for learn, validate in iter_folds(targets, speakers)]
    if not losses:  # no fold to validate on
        return INVERSE_REGULARISATION[0]
    return INVERSE_REGULARISATION[_simplest(np.array(losses))]


def _losses(
    features: NDArray[Any], targets: NDArray[np.int64], learn: NDArray[Any], validate: NDArray[Any]
) -> list[float]:
    """Return the log loss on the validation rows for each value of C."""
    space = _RowSpace.of(features[:, learn], targets[learn])
    return [space.fit(strength).loss(features[0, validate], targets[validate]) for strength in INVERSE_REGULARISATION]


def _simplest(losses: NDArray[np.float64]) -> int:
    """Return the first column (folds, choices) that is worse than the best by at most one standard error."""
    worse = losses - losses[:, [int(losses.mean(axis=0).argmin())]]
    errors = worse.std(axis=0, ddof=1) / np.sqrt(len(worse)) if len(worse) > 1 else np.zeros(worse.shape[1])
    return int(np.argmax(worse.mean(axis=0) <= errors))


def iter_folds(targets: NDArray[np.int64], speakers: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield training rows and validation rows of other speakers, for folds with at least two emotions."""
    folds = GroupKFold(min(_NUM_FOLDS, len(np.unique(speakers))))
    for learn, validate in folds.split(targets, groups=speakers):
        if len(np.unique(targets[learn])) > 1:
            yield learn, validate
