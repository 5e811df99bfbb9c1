"""Retrieval metrics over cosine similarity: ranks, recall, median rank and nDCG.

The similarity matrix is never stored as a whole, and features are neither copied nor sorted: it is computed and counted
in tiles, on the device that holds the features. Every metric follows from ranks, and a rank is a count (wrong answers
that score at least as high as the correct one, plus one).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from brewclip.intervals import bootstrap_interval

DIRECTIONS = ("speech_to_image", "image_to_speech")
RECALL_AT = (1, 5, 10)
NDCG_AT = 10

# Cosines closer than this are a tie. It is above float32's rounding (3e-7 at 768 dimensions), so that equal
# embeddings tie whatever the summation order of the matrix product.
TIE_TOLERANCE = 1e-6
# Images and recordings per tile: 8 MiB of scores, which fit into a CPU cache. The number of images must be below 256,
# see `_count_columns`.
_TILE_IMAGES, _TILE_SPEECH = 128, 16384
_SORT_FROM_LIMITS = 64  # up to here, one pass over the scores per limit is cheaper than sorting them


@dataclass(frozen=True)
class RetrievalResult:
    """Ranks and nDCG per query, in the order of the features passed to `retrieval`.

    Ties count against the system: a wrong answer with the score of the correct one is ranked before it. Constant
    embeddings therefore get the last rank everywhere.

    Attributes:
        speech_to_image_rank: (Q,) int64, 1-based rank of each recording's image.
        image_to_speech_rank: (I,) int64, 1-based best rank of any of the image's recordings; images
            without a recording are no queries and have no row, but stay in the gallery of the other
            direction.
        speech_to_image_ndcg: (Q,) float64, nDCG@10 of each recording.
        image_to_speech_ndcg: (I,) float64, nDCG@10 of each image that has recordings.
        query_image_ids: (I,) image ids of the rows above.
        num_images: size of the gallery without duplicates.
    """

    speech_to_image_rank: NDArray[np.int64]
    image_to_speech_rank: NDArray[np.int64]
    speech_to_image_ndcg: NDArray[np.float64]
    image_to_speech_ndcg: NDArray[np.float64]
    query_image_ids: NDArray[Any]
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
        """Return for each query whether a correct answer is among the first k."""
        return self.ranks(direction) <= k

    def summary(self, seed: int = 0) -> dict[str, float]:
        """Return every metric by name, such as "speech_to_image/R1" in percent.

        Each R and nDCG also has "_low" and "_high", the 95 % bootstrap interval over queries.
        """
        summary = {}
        for direction in DIRECTIONS:
            values: dict[str, NDArray[Any]] = {f"R{k}": self.hits(direction, k) for k in RECALL_AT}
            values[f"ndcg{NDCG_AT}"] = self.ndcg(direction)
            for name, per_query in values.items():
                low, high = bootstrap_interval(per_query, seed=seed)
                summary[f"{direction}/{name}"] = 100.0 * float(np.mean(per_query))
                summary[f"{direction}/{name}_low"] = 100.0 * low
                summary[f"{direction}/{name}_high"] = 100.0 * high
            summary[f"{direction}/median_rank"] = float(np.median(self.ranks(direction)))
        return summary


def retrieval(
    speech_features: Tensor | NDArray[Any],
    speech_image_ids: ArrayLike,
    image_features: Tensor | NDArray[Any],
    image_ids: ArrayLike,
) -> RetrievalResult:
    """Rank images for every recording and recordings for every image, by cosine similarity.

    Args:
        speech_features: (Q, D), not necessarily normalised.
        speech_image_ids: (Q,) image id of each recording.
        image_features: (G, D), not necessarily normalised.
        image_ids: (G,) image ids of the gallery; the first row of a repeated image is used.

    Raises:
        ValueError: if there is nothing to rank, shapes disagree, a feature is not finite or is zero, or a
            recording's image is not in the gallery.
    """
    speech, images = _as_matrix(speech_features, "speech"), _as_matrix(image_features, "image")
    speech_ids = _checked_ids(speech_image_ids, len(speech), "speech_image_ids")
    gallery_ids, first_rows = np.unique(_checked_ids(image_ids, len(images), "image_ids"), return_index=True)
    if speech.shape[1] != images.shape[1]:
        raise ValueError(f"speech features have {speech.shape[1]} dimensions, image features {images.shape[1]}")

    answers = np.searchsorted(gallery_ids, speech_ids).clip(max=len(gallery_ids) - 1)
    missing = gallery_ids[answers] != speech_ids
    if missing.any():
        raise ValueError(
            f"{missing.sum()} recordings belong to images that are not in the gallery, such as image_id "
            f"{speech_ids[missing][0]!s}; give the features of all images"
        )
    # Sort recordings by image, so that those of a block of images are contiguous.
    order = np.argsort(answers, kind="stable")
    answers = answers[order]
    wrong_images, wrong_speech = _count_wrong(
        _UnitRows(speech, order, "speech", speech.device),
        _UnitRows(images, first_rows, "image", speech.device),
        answers,
    )
    query_images, starts = np.unique(answers, return_index=True)
    best_rank, ndcg = _ranks_of_images(wrong_speech, starts)

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


class _UnitRows:
    """Rows of features in a given order, converted to float32 and normalised on access.

    Raises:
        ValueError: if a row is zero or not finite.
    """

    def __init__(self, features: Tensor, order: NDArray[np.int64], name: str, device: torch.device) -> None:
        lengths = [part.float().norm(dim=1) for part in features.split(_TILE_SPEECH)]
        self._lengths = torch.cat(lengths)[:, None]
        bad = ~(self._lengths.isfinite() & (self._lengths > 0)).squeeze(1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"{int(bad.sum())} {name} features are zero or not finite, the first in row {row}")
        self._features, self._order, self._device = features, torch.from_numpy(order).to(features.device), device

    def __len__(self) -> int:
        return len(self._order)

    def rows(self, picks: slice | NDArray[np.int64]) -> Tensor:
        """Return rows (n, D) of this order."""
        rows = self._order[picks if isinstance(picks, slice) else torch.from_numpy(picks).to(self._order.device)]
        return (self._features[rows].float() / self._lengths[rows]).to(self._device)


def _count_wrong(
    speech: _UnitRows, images: _UnitRows, answers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count, for each matching pair, the wrong images and wrong recordings that score at least as high.

    Args:
        speech: Q recordings, sorted by `answers`.
        images: G images.
        answers: (Q,) ascending, the image of each recording.
    """
    blocks = [slice(start, min(start + _TILE_SPEECH, len(speech))) for start in range(0, len(speech), _TILE_SPEECH)]
    with torch.autocast(speech.rows(slice(0, 1)).device.type, enabled=False):
        limits = torch.cat([(speech.rows(rows) * images.rows(answers[rows])).sum(dim=1) for rows in blocks])
        limits -= TIE_TOLERANCE
        own = torch.empty_like(limits)
        # Each recording's own image reaches its limit; start at -1, as it is not wrong.
        wrong_images = torch.full_like(limits, -1, dtype=torch.int64)
        reaching_speech = torch.zeros_like(wrong_images)
        for block in blocks:
            recordings = speech.rows(block)
            for start in range(0, len(images), _TILE_IMAGES):
                scores = images.rows(slice(start, start + _TILE_IMAGES)) @ recordings.T  # (b, c)
                wrong_images[block] += _count_columns(_reaching(scores, limits[block]))
                bounds = np.searchsorted(answers, np.arange(start, start + len(scores) + 1))
                _count_rows(scores, limits, bounds, reaching_speech)
                first, last = max(bounds[0], block.start), min(bounds[-1], block.stop)
                if first < last:
                    rows = torch.from_numpy(answers[first:last] - start).to(scores.device)
                    columns = torch.arange(first - block.start, last - block.start, device=scores.device)
                    own[first:last] = scores[rows, columns]
    # Recordings of the same image are not wrong.
    right_speech = _count_right(own.cpu().numpy(), limits.cpu().numpy(), answers)
    return wrong_images.cpu().numpy(), reaching_speech.cpu().numpy() - right_speech


def _reaching(scores: Tensor, limits: Tensor) -> Tensor:
    """Return scores >= limits; on a CPU numpy is four times as fast as torch (5.4 and 1.3 G/s per thread)."""
    return torch.from_numpy(scores.numpy() >= limits.numpy()) if scores.is_cpu else scores >= limits


def _count_columns(reached: Tensor) -> Tensor:
    """Count True per column of (at most 255, c); summing bytes as uint8 is 40 times faster."""
    return reached.view(torch.uint8).sum(dim=0, dtype=torch.uint8)


def _count_rows(scores: Tensor, limits: Tensor, bounds: NDArray[np.int64], counts: Tensor) -> None:
    """Add to the count of each recording the number of its image's scores that reach its limit.

    Args:
        scores: (b, c) scores of b images and c recordings.
        limits: (Q,) limits of all recordings.
        bounds: (b + 1,) first recording of each of these images, and the end.
        counts: (Q,) int64, updated in place.
    """
    firsts, numbers = bounds[:-1], np.diff(bounds)
    for row in np.flatnonzero(numbers > _SORT_FROM_LIMITS):
        mine = slice(firsts[row], bounds[row + 1])
        counts[mine] += scores.shape[1] - torch.searchsorted(scores[row].sort().values, limits[mine])
    few = np.where(numbers > _SORT_FROM_LIMITS, 0, numbers)
    for number in range(few.max(initial=0)):  # the first recording of every image, then the second
        rows = np.flatnonzero(few > number)
        picks = torch.from_numpy(firsts[rows] + number).to(scores.device)
        part = scores if len(rows) == len(scores) else scores[torch.from_numpy(rows).to(scores.device)]
        reached = _reaching(part, limits[picks][:, None])
        if reached.is_cpu:  # 16 G/s; torch's sum reaches 0.2
            counts[picks] += torch.tensor([np.count_nonzero(row) for row in reached.numpy()])
        else:
            counts[picks] += reached.sum(dim=1)


def _count_right(
    own: NDArray[np.float32], limits: NDArray[np.float32], answers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count for each recording the recordings of its image, including itself, that reach its limit.

    Args:
        own: (Q,) score of each recording with its image, from the same tiles as the counts.
        limits: (Q,) limit of each recording.
        answers: (Q,) ascending, the image of each recording.
    """
    # Sort scores and limits per image in descending order, scores before equal limits: a limit's position is its count.
    values, is_limit = np.concatenate([own, limits]), np.repeat([False, True], len(own))
    order = np.lexsort((is_limit, -values, np.concatenate([answers, answers])))
    scores_before = np.cumsum(~is_limit[order])
    right = np.empty(len(own), np.int64)
    at_limits = order[is_limit[order]] - len(own)
    right[at_limits] = scores_before[is_limit[order]] - np.searchsorted(answers, answers[at_limits])
    return right


def _ranks_of_images(
    wrong_before: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return best rank and nDCG of each image from the number of wrong recordings before each correct one.

    Args:
        wrong_before: (Q,) counts, grouped by image.
        starts: (I,) first recording of each image.
    """
    counts = np.diff(np.append(starts, len(wrong_before)))
    image = np.repeat(np.arange(len(starts)), counts)
    sorted_wrong = wrong_before[np.lexsort((wrong_before, image))]
    place = np.arange(len(sorted_wrong)) - starts[image]  # correct recordings before this one
    gain = np.bincount(image, _gain(sorted_wrong + place + 1))
    ideal = np.cumsum(_gain(np.arange(1, NDCG_AT + 1)))[np.minimum(counts, NDCG_AT) - 1]
    return sorted_wrong[starts] + 1, gain / ideal


def _gain(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the discounted gain of correct answers at 1-based ranks, zero below rank 10.

    Source: trec_eval's ndcg_cut with binary relevance, which MTEB reports. With one correct answer this is
        nDCG.
    """
    return np.where(ranks <= NDCG_AT, 1.0 / np.log2(ranks + 1.0), 0.0)


def _as_matrix(features: Tensor | NDArray[Any], name: str) -> Tensor:
    tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2 or not tensor.numel():
        raise ValueError(f"{name} features have shape {tuple(tensor.shape)}; (rows, dimensions) with a row is needed")
    return tensor


def _checked_ids(ids: ArrayLike, num_rows: int, name: str) -> NDArray[Any]:
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.shape != (num_rows,):
        raise ValueError(f"{name} has shape {array.shape} for {num_rows} rows of features; give one id for each row")
    return array
