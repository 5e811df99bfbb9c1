"""Ranks per query of a system on a split, saved for later tables and paired comparisons of systems."""

import functools
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brewclip.errors import UserError
from brewclip.intervals import bootstrap_interval, paired_difference
from brewclip.metrics import RetrievalResult

_SPEECH_TO_IMAGE = "speech_to_image"


@dataclass(frozen=True)
class Ranking:
    """Ranks of one system on one split.

    Attributes:
        keys: (Q,) keys of the recordings, in the order of `result.speech_to_image_rank`.
        result: ranks and nDCG per query.
        facts: system, checkpoint, split, counts; plain JSON.
    """

    keys: NDArray[np.str_]
    result: RetrievalResult
    facts: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Serialize to the bytes of an .npz file."""
        result, buffer = self.result, io.BytesIO()
        np.savez_compressed(
            buffer,
            facts=np.array(json.dumps(self.facts | {"num_images": result.num_images})),
            keys=self.keys,
            query_image_ids=np.asarray(result.query_image_ids, np.str_),
            speech_to_image_rank=result.speech_to_image_rank,
            image_to_speech_rank=result.image_to_speech_rank,
            speech_to_image_ndcg=result.speech_to_image_ndcg,
            image_to_speech_ndcg=result.image_to_speech_ndcg,
        )
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> "Ranking":
        """Deserialize the bytes of `to_bytes`, without pickle."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files}
        facts = json.loads(str(columns.pop("facts")))
        keys = columns.pop("keys")
        return Ranking(keys, RetrievalResult(**columns, num_images=facts.pop("num_images")), facts)

    def hits(self, direction: str, k: int) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
        """Return the names of the queries in a direction, and for each whether its rank is at most k."""
        names = self.keys if direction == _SPEECH_TO_IMAGE else np.asarray(self.result.query_image_ids, np.str_)
        return names, self.result.hits(direction, k).astype(np.float64)

    def recall(self, direction: str, k: int) -> float:
        """Return R@k in percent."""
        return 100.0 * float(np.mean(self.result.hits(direction, k)))


@dataclass(frozen=True)
class Difference:
    """Difference of recall between two systems, or a system and a published number, with its 95 % interval.

    Attributes:
        mean, low, high: in percentage points.
        num_queries: number of queries that both answered.
    """

    mean: float
    low: float
    high: float
    num_queries: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def compare(rankings: Sequence[Ranking], baselines: Sequence[Ranking], direction: str, k: int) -> Difference:
    """Compare two systems on the queries that both answered, each pooled over its seeds.

    The value of a query is its mean over the seeds, and queries are resampled jointly for both systems. The interval
    therefore covers variation over queries for these seeds, not over seeds.

    Args:
        rankings: rankings of the system, one per seed.
        baselines: rankings of the other system, one per seed; one in all if it has no seed.
        direction: one of `brewclip.metrics.DIRECTIONS`.
        k: k of R@k.

    Raises:
        UserError: if the rankings have no query in common.
    """
    ours, theirs = paired_hits(rankings, baselines, direction, k)
    mean, low, high = paired_difference(ours, theirs)
    return Difference(100 * mean, 100 * low, 100 * high, len(ours))


def paired_hits(
    rankings: Sequence[Ranking], baselines: Sequence[Ranking], direction: str, k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each query that both systems answered the mean hit over the seeds, for either system.

    Raises:
        UserError: if there is no such query.
    """
    found = [one.hits(direction, k) for one in (*rankings, *baselines)]
    common = functools.reduce(np.intersect1d, [names for names, _ in found])
    if not len(common):
        raise UserError(f"the systems answered no query in common in {direction}: evaluate them on the same split")
    rows = [_values_of(common, names, values) for names, values in found]
    return np.mean(rows[: len(rankings)], axis=0), np.mean(rows[len(rankings) :], axis=0)


def compare_with_number(rankings: Sequence[Ranking], number: float, direction: str, k: int) -> Difference:
    """Compare a system, pooled over its seeds, with a published recall in percent."""
    values, _ = paired_hits(rankings, rankings, direction, k)
    low, high = bootstrap_interval(values)
    mean = float(np.mean(values))
    return Difference(100 * mean - number, 100 * low - number, 100 * high - number, len(values))


def compare_all(
    rankings: dict[str, Ranking], baseline: str, directions: Sequence[str], recall_at: Sequence[int]
) -> dict[str, dict[str, Difference]]:
    """Compare every system with one of them.

    Returns:
        system -> `direction/Rk` -> difference, without the baseline itself.
    """
    base = [rankings[baseline]]
    return {
        name: {f"{direction}/R{k}": compare([one], base, direction, k) for direction in directions for k in recall_at}
        for name, one in rankings.items()
        if name != baseline
    }


def _values_of(common: NDArray[np.str_], names: NDArray[np.str_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(names)
    return values[order[np.searchsorted(names, common, sorter=order)]]
