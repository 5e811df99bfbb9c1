"""Synthetic rankings for tests of tables and claims."""

import numpy as np

from brewclip.evaluation.ranks import Ranking
from brewclip.metrics import RetrievalResult


def make_ranking(hits: int, count: int = 200, *, seed: int = 0, prefix: str = "q") -> Ranking:
    """Return a ranking of `count` queries, `hits` of them, chosen at random, with rank 1 and the others missed."""
    ranks = np.full(count, 1000)
    ranks[np.random.default_rng(seed).permutation(count)[:hits]] = 1
    gain = (ranks == 1).astype(float)
    names = np.array([f"{prefix}{number}" for number in range(count)])
    return Ranking(names, RetrievalResult(ranks, ranks, gain, gain, names, count), {"system": "made"})
