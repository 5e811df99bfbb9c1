"""Retrieval metrics over cosine similarity: ranks, recall, median rank, nDCG, and intervals by bootstrap.

The similarity matrix is never held as a whole. Every metric follows from ranks, and a rank is a count (wrong
answers that score as well as the right one, plus one), so nothing is sorted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

DIRECTIONS = ("speech_to_image", "image_to_speech")
RECALL_AT = (1, 5, 10)
NDCG_AT = 10
NUM_RESAMPLES = 1000

# Cosines nearer than this are a tie. It is above float32's rounding (3e-7 at 768 dimensions), so that equal
# embeddings tie in whatever order a matrix product adds them up.
TIE_TOLERANCE = 1e-6
_BLOCK_IMAGES = 128  # rows of similarities held at once; below 256, see `_count_wrong`
_SORT_FROM_LIMITS = 64  # a pass over the scores for each limit is cheaper than sorting them, up to here


@dataclass(frozen=True)
class RetrievalResult:
    """What became of every query; queries are in the order of the features given to `retrieval`.

    Ties count against the system: a wrong answer that scores the same as the right one stands before it.
    Constant embeddings so have the last rank everywhere.

    Attributes:
        speech_to_image_rank: (Q,) int64, 1-based rank of each recording's picture.
        image_to_speech_rank: (I,) int64, 1-based best rank of any of the picture's recordings; pictures
            without a recording ask nothing and have no row, though they stay in the other direction's
            gallery.
        speech_to_image_ndcg: (Q,) float64, nDCG@10 of each recording.
        image_to_speech_ndcg: (I,) float64, nDCG@10 of each picture that has recordings.
        query_image_ids: (I,) image ids of the rows above.
        num_images: size of the gallery, after duplicates were taken out.
    """

    speech_to_image_rank: NDArray[np.int64]
    image_to_speech_rank: NDArray[np.int64]
    speech_to_image_ndcg: NDArray[np.float64]
    image_to_speech_ndcg: NDArray[np.float64]
    query_image_ids: NDArray
    num_images: int

    def ranks(self, direction: str) -> NDArray[np.int64]:
        """Return the ranks of one of `DIRECTIONS`."""
        return {
            "speech_to_image": self.speech_to_image_rank,
            "image_to_speech": self.image_to_speech_rank,
        }[direction]

    def ndcg(self, direction: str) -> NDArray[np.float64]:
        """Return nDCG@10 of each query in one of `DIRECTIONS`."""
        return {
            "speech_to_image": self.speech_to_image_ndcg,
            "image_to_speech": self.image_to_speech_ndcg,
        }[direction]

    def hits(self, direction: str, k: int) -> NDArray[np.bool_]:
        """Return for each query whether a right answer is among the first k."""
        return self.ranks(direction) <= k

    def summary(self, seed: int = 0) -> dict[str, float]:
        """Return every metric by name, such as "speech_to_image/R1" in percent.

        With each R and nDCG come "_low" and "_high", the 95 % bootstrap interval over queries.
        """
        summary = {}
        for direction in DIRECTIONS:
            values: dict[str, NDArray] = {f"R{k}": self.hits(direction, k) for k in RECALL_AT}
            values[f"ndcg{NDCG_AT}"] = self.ndcg(direction)
            for name, per_query in values.items():
                low, high = bootstrap_interval(per_query, seed=seed)
                summary[f"{direction}/{name}"] = 100.0 * float(np.mean(per_query))
                summary[f"{direction}/{name}_low"] = 100.0 * low
                summary[f"{direction}/{name}_high"] = 100.0 * high
            summary[f"{direction}/median_rank"] = float(np.median(self.ranks(direction)))
        return summary


def retrieval(
    speech_features: Tensor | NDArray,
    speech_image_ids: ArrayLike,
    image_features: Tensor | NDArray,
    image_ids: ArrayLike,
) -> RetrievalResult:
    """Rank pictures for every recording and recordings for every picture, by cosine similarity.

    Args:
        speech_features: (Q, D), of any length.
        speech_image_ids: (Q,) the picture of each recording.
        image_features: (G, D), of any length.
        image_ids: (G,) of the gallery; of a picture given more than once, the first row counts.

    Raises:
        ValueError: if there is nothing to rank, shapes disagree, a feature is not finite or is zero, or a
            recording's picture is not in the gallery.
    """
    speech = _normalised(speech_features, "speech")
    images = _normalised(image_features, "image")
    speech_ids = _checked_ids(speech_image_ids, len(speech), "speech_image_ids")
    gallery_ids, first_rows = np.unique(_checked_ids(image_ids, len(images), "image_ids"), return_index=True)
    if speech.shape[1] != images.shape[1]:
        raise ValueError(f"speech features have {speech.shape[1]} dimensions, image features {images.shape[1]}")
    images = images[torch.from_numpy(first_rows)]

    answers = np.searchsorted(gallery_ids, speech_ids).clip(max=len(gallery_ids) - 1)
    missing = gallery_ids[answers] != speech_ids
    if missing.any():
        raise ValueError(
            f"{missing.sum()} recordings belong to pictures that are not in the gallery, such as image_id "
            f"{speech_ids[missing][0]!s}; give the features of all pictures"
        )
    # Recordings in the order of their pictures: those of a block of pictures are then a block of recordings.
    order = np.argsort(answers, kind="stable")
    wrong_images, wrong_speech = _count_wrong(speech[torch.from_numpy(order)], images, answers[order])
    query_images, starts = np.unique(answers[order], return_index=True)
    best_rank, ndcg = _ranks_of_pictures(wrong_speech, starts)

    speech_rank = np.empty(len(order), np.int64)
    speech_rank[order] = wrong_images + 1
    return RetrievalResult(
        speech_to_image_rank=speech_rank,
        image_to_speech_rank=best_rank,
        speech_to_image_ndcg=_gain(speech_rank),
        image_to_speech_ndcg=ndcg,
        query_image_ids=gallery_ids[query_images],
        num_images=len(gallery_ids),
    )


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over queries.

    Drawing n of n queries with replacement draws how often each distinct value comes: one multinomial draw a
    resample, which is the same distribution and far cheaper, as recalls have two values.

    Args:
        values: (n,) one number per query.
        confidence: of the interval, in (0, 1).
        num_resamples: how many means the interval is read from.
        seed: of the draws.

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
    """Compare two systems on the same queries.

    Args:
        values: (n,) one number per query, such as `RetrievalResult.hits`.
        baseline: (n,) of the other system, the same queries in the same order.
        num_resamples: as in `bootstrap_interval`.
        seed: of the draws.

    Returns:
        Mean of values - baseline, and its 95 % interval: both systems are drawn together.

    Raises:
        ValueError: if the systems did not answer the same number of queries.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"the systems answered {ours.shape} and {theirs.shape} queries; a pair needs the same ones")
    low, high = bootstrap_interval(ours - theirs, num_resamples=num_resamples, seed=seed)
    return float(np.mean(ours - theirs)), low, high


def _count_wrong(
    speech: Tensor, images: Tensor, answers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count, for each right pair, the wrong pictures and the wrong recordings that score at least as well.

    Args:
        speech: (Q, D), unit length, sorted by `answers`.
        images: (G, D), unit length.
        answers: (Q,) ascending, the picture of each recording.
    """
    thresholds = ((speech * images[torch.from_numpy(answers)]).sum(dim=1) - TIE_TOLERANCE).numpy()
    # Each recording's own picture passes its threshold; it is not wrong.
    wrong_images = np.full(len(speech), -1, np.int64)
    wrong_speech = np.zeros(len(speech), np.int64)
    for start in range(0, len(images), _BLOCK_IMAGES):
        scores = (images[start : start + _BLOCK_IMAGES] @ speech.T).numpy()  # (b, Q)
        # Summing bytes as bytes is ten times faster, and a block has too few rows to overflow.
        wrong_images += (scores >= thresholds).view(np.uint8).sum(axis=0, dtype=np.uint8)
        bounds = np.searchsorted(answers, np.arange(start, start + len(scores) + 1))
        for row, first, last in zip(scores, bounds[:-1], bounds[1:], strict=True):
            limits = thresholds[first:last]
            # Recordings of the same picture are not wrong.
            wrong_speech[first:last] = _count_at_least(row, limits) - _count_at_least(row[first:last], limits)
    return wrong_images, wrong_speech


def _count_at_least(scores: NDArray[np.float32], limits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return for each limit how many scores reach it."""
    if len(limits) < _SORT_FROM_LIMITS:
        return np.array([np.count_nonzero(scores >= limit) for limit in limits], np.int64)
    return len(scores) - np.searchsorted(np.sort(scores), limits)


def _ranks_of_pictures(
    wrong_before: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return best rank and nDCG of each picture from the wrong recordings before each of its right ones.

    Args:
        wrong_before: (Q,) recordings of one picture side by side.
        starts: (I,) where each picture's recordings begin.
    """
    counts = np.diff(np.append(starts, len(wrong_before)))
    picture = np.repeat(np.arange(len(starts)), counts)
    sorted_wrong = wrong_before[np.lexsort((wrong_before, picture))]
    place = np.arange(len(sorted_wrong)) - starts[picture]  # right recordings before this one
    gain = np.bincount(picture, _gain(sorted_wrong + place + 1))
    ideal = np.cumsum(_gain(np.arange(1, NDCG_AT + 1)))[np.minimum(counts, NDCG_AT) - 1]
    return sorted_wrong[starts] + 1, gain / ideal


def _gain(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Discounted gain of right answers at 1-based ranks, zero below the tenth.

    Source: trec_eval's ndcg_cut with binary relevance, which MTEB reports. With one right answer this is
        nDCG.
    """
    return np.where(ranks <= NDCG_AT, 1.0 / np.log2(ranks + 1.0), 0.0)


def _normalised(features: Tensor | NDArray, name: str) -> Tensor:
    tensor = torch.as_tensor(features).detach().cpu().float()
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name} features have shape {tuple(tensor.shape)}; (rows, dimensions) with a row is needed")
    lengths = tensor.norm(dim=1, keepdim=True)
    bad = ~(lengths.isfinite() & (lengths > 0)).squeeze(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{int(bad.sum())} {name} features are zero or not finite, the first in row {row}")
    return tensor / lengths


def _checked_ids(ids: ArrayLike, num_rows: int, name: str) -> NDArray:
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.shape != (num_rows,):
        raise ValueError(f"{name} has shape {array.shape} for {num_rows} rows of features; give one id for each row")
    return array
