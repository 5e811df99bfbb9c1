"""Word errors of Whisper and their effect: WER per utterance, and recall as a function of WER."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import whisper.normalizers
from numpy.typing import NDArray

from brewclip.config import Config
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.errors import UserError
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.wer import BAND_EDGES, Utterance, make_utterance
from brewclip.intervals import bootstrap_interval
from brewclip.metrics import RECALL_AT
from brewclip.models.decoding import MAX_COMPRESSION_RATIO
from brewclip.studies.logistic import LogisticFit, fit_logistic

HIT_AT = 5


@dataclass(frozen=True)
class Band:
    """Recall of the utterances with a WER in (low, high], in percent, with 95 % bootstrap intervals.

    Attributes:
        low, high: WER as a fraction; the band of 0 holds utterances without errors.
        num_queries: number of utterances.
        mean_wer: mean WER as a fraction; nan without queries.
        recall: k -> R@k, low, high; empty without queries.
    """

    low: float
    high: float
    num_queries: int
    mean_wer: float
    recall: dict[int, tuple[float, float, float]]

    @property
    def label(self) -> str:
        """Label in tables, in percent."""
        if self.high == 0:
            return "0"
        if np.isinf(self.high):
            return f"above {100 * self.low:.0f}"
        return f"{100 * self.low:.0f} to {100 * self.high:.0f}" if self.low else f"up to {100 * self.high:.0f}"


@dataclass(frozen=True)
class WordErrorEffect:
    """Effect of word errors on a system, speech -> image.

    Attributes:
        system: name of the system.
        wer: (n,) WER as a fraction, of the queries that have one.
        hits: (n,) whether the correct image is among the first `HIT_AT`.
        fit: logistic regression of hits on WER, or None.
        problem: why there is no fit, or empty.
        bands: recall by band of WER.
    """

    system: str
    wer: NDArray[np.float64]
    hits: NDArray[np.bool_]
    fit: LogisticFit | None
    problem: str
    bands: list[Band]


def load_utterances(config: Config, split: str) -> tuple[list[Utterance], int]:
    """Read reference texts and transcripts of a split, in stored order; samples without a text are skipped.

    Returns:
        The utterances, and the number of samples of the split.

    Source: WER after Whisper's English normaliser (Radford et al. 2022, appendix C).

    Raises:
        UserError: if no sample has a reference text, or the split was not extracted.
    """
    manifest = open_manifest(f"{config.features_url}/{split}", retry_seconds=10)
    normalise = whisper.normalizers.EnglishTextNormalizer()
    rejections = Rejections(manifest.url)
    share = iter_split(
        SplitReader(manifest),
        lambda sample: make_utterance(sample, normalise),
        rejections,
        num_threads=config.data.num_threads,
    )
    found = [utterance for _, utterance in share if utterance is not None]
    if not found:
        raise UserError(
            f"none of the {len(manifest)} samples of {manifest.url} says what was spoken (field `text`): "
            "word errors need a split with ground-truth text"
        )
    return found, len(manifest)


def summarise(utterances: list[Utterance], num_samples: int) -> dict[str, Any]:
    """Count errors, silence and hallucinations.

    Args:
        utterances: utterances with a reference text.
        num_samples: samples of the whole split.

    Returns:
        corpus_wer (all errors over all words, percent), median_wer (percent), utterances, without_text (samples without
        a reference text), nothing_spoken (reference texts without a word; not in any rate), exact (no errors), silent
        (rejected as no speech), rejected {reason: n} (transcripts emptied by Whisper's rules), empty (no word in the
        transcript of a text with words), repetitive (rejected or not, a compression ratio above Whisper's limit),
        retried (greedy decoding was not accepted), invented (a transcript with at least as many errors as words: WER of
        100 % or more, or words where none were spoken).
    """
    spoken = [one for one in utterances if one.num_words]
    num_words = sum(one.num_words for one in spoken)
    reasons = Counter(one.rejected for one in utterances if one.rejected)
    return {
        "corpus_wer": 100.0 * sum(one.num_errors for one in spoken) / num_words if num_words else None,
        "median_wer": 100.0 * float(np.median([one.wer for one in spoken])) if spoken else None,
        "utterances": len(utterances),
        "without_text": num_samples - len(utterances),
        "nothing_spoken": len(utterances) - len(spoken),
        "exact": sum(not one.num_errors for one in spoken),
        "silent": reasons.get("no_speech", 0),
        "rejected": dict(sorted(reasons.items())),
        "empty": sum(not one.heard for one in spoken),
        "repetitive": sum(one.compression_ratio > MAX_COMPRESSION_RATIO for one in utterances),
        "retried": sum(one.temperature > 0 for one in utterances),
        "invented": sum(bool(one.heard) and one.num_errors >= one.num_words for one in utterances),
    }


def measure_effect(ranking: Ranking, utterances: list[Utterance]) -> WordErrorEffect:
    """Fit the effect of word errors on the ranks of a system's queries.

    Raises:
        UserError: if no query of the ranking has a WER.
    """
    by_key = {one.key: one for one in utterances if one.num_words}
    rows = [row for row, key in enumerate(ranking.keys) if str(key) in by_key]
    system = str(ranking.facts["system"])
    if not rows:
        raise UserError(f"no query of {system} has a word error rate: were they evaluated on another split?")
    wer = np.array([by_key[str(ranking.keys[row])].wer for row in rows])
    ranks = ranking.result.speech_to_image_rank[rows]
    hits = ranks <= HIT_AT
    try:
        fit, problem = fit_logistic(wer, hits), ""
    except ValueError as error:
        fit, problem = None, str(error)
    return WordErrorEffect(system, wer, hits, fit, problem, recall_by_band(wer, ranks))


def recall_by_band(wer: NDArray[np.float64], ranks: NDArray[np.int64]) -> list[Band]:
    """Compute recall, with intervals, per band of WER."""
    bands = []
    for low, high in zip((-np.inf, *BAND_EDGES[:-1]), BAND_EDGES, strict=True):
        inside = (wer > low) & (wer <= high)
        recall = {}
        for k in RECALL_AT if inside.any() else ():
            hits = ranks[inside] <= k
            ends = bootstrap_interval(hits)
            recall[k] = (100.0 * float(np.mean(hits)), 100.0 * ends[0], 100.0 * ends[1])
        mean_wer = float(wer[inside].mean()) if inside.any() else float("nan")
        bands.append(Band(max(0.0, low), high, int(inside.sum()), mean_wer, recall))
    return bands
