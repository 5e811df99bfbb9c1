"""Claims of the paper as comparisons of two table rows, and their verdicts from measured ranks.

A claim that one system is better holds if the whole 95 % interval of the paired difference is above zero; a claim of no
difference holds if the interval contains zero, one of "not below" unless all of it is below. All other claims fail, and
their interval is reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brewclip.evaluation.published import CORPORA, EARLIER, Recalls
from brewclip.evaluation.ranks import Difference, Ranking, compare, compare_with_number, paired_hits
from brewclip.evaluation.recall_tables import TITLES
from brewclip.metrics import DIRECTIONS, RECALL_AT

# Kind of speech of each corpus; claims are about kinds.
READ, FREE, MISHEARD, MIXED = "read", "free", "misheard", "mixed"
KINDS = {
    "flickr8k": READ,
    "spoken_coco": READ,
    "scenes": READ,
    "localized_narratives": FREE,
    "scenes_narratives": FREE,
    "scenes_noisy": MISHEARD,
    "scenes_mixed": MIXED,
}
HOLDS, FAILS, NOT_RUN, NOT_TESTED = "holds", "fails", "not run", "not tested"


@dataclass(frozen=True)
class Claim:
    """One claim about two rows of a table.

    Attributes:
        text: the claim, and its section in the paper.
        row, baseline: titles of the rows; the claim is about row - baseline.
        kinds: kinds of speech that it is about.
        ks: k of each R@k to test it at.
        level: True for "no difference", False for "above".
        not_below: the claim is "not below": it fails only if the whole interval is below zero.
    """

    text: str
    row: str
    baseline: str
    kinds: tuple[str, ...]
    ks: tuple[int, ...] = (10,)
    level: bool = False
    not_below: bool = False


@dataclass(frozen=True)
class Verdict:
    """Verdict on a claim at one recall; `measure` is empty if nothing was measured."""

    claim: str
    corpus: str
    measure: str
    difference: str
    by_seed: str
    published: str
    verdict: str

    def cells(self) -> list[str]:
        """Return the cells of the row in the table of claims."""
        return [
            *(self.claim, self.corpus, self.measure, self.difference, self.by_seed),
            *(self.published, self.verdict),
        ]


HEADER = ["claim", "corpus", "at", "points [95 %]", "each seed", "in the paper", "verdict"]
Rows = Mapping[str, Sequence[Ranking]]


def judge(claim: Claim, corpus: str, rows: Rows, published: Mapping[str, Recalls | None]) -> list[Verdict]:
    """Compare the rows of a claim on one corpus, with a verdict per direction and recall.

    Args:
        claim: claim about rows of the table.
        corpus: test corpus.
        rows: title -> rankings, one per seed; empty for rows that were not run.
        published: title -> recalls of the paper, if any.
    """
    ours, theirs = rows.get(claim.row, ()), rows.get(claim.baseline, ())
    if not ours or not theirs:
        return [Verdict(claim.text, corpus, "", "", "", "", NOT_RUN)]
    verdicts = []
    for direction in DIRECTIONS:
        for k in claim.ks:
            found = compare(ours, theirs, direction, k)
            each = [compare([one], [_of_seed(theirs, seed)], direction, k).mean for seed, one in enumerate(ours)]
            place = DIRECTIONS.index(direction) * len(RECALL_AT) + RECALL_AT.index(k)
            verdicts.append(
                Verdict(
                    claim.text, corpus, f"{TITLES[direction]} R@{k}", str(found), ", ".join(f"{e:+.1f}" for e in each),
                    _published_difference(published, claim, place), _verdict(found, claim.level, claim.not_below),
                )
            )  # fmt: skip
    return verdicts


def judge_against_earlier(text: str, corpus: str, ours: Sequence[Ranking]) -> list[Verdict]:
    """Compare a system with the best earlier one published on a corpus, R@1 in both directions."""
    known = [of[corpus] for of in EARLIER.values() if corpus in of]
    if corpus not in CORPORA or not known:
        return [Verdict(text, corpus, "", "", "", "", f"{NOT_TESTED}: earlier systems were not run on this corpus")]
    if not ours:
        return [Verdict(text, corpus, "", "", "", "", NOT_RUN)]
    verdicts = []
    for place, direction in ((0, DIRECTIONS[0]), (len(RECALL_AT), DIRECTIONS[1])):
        best = max(value for row in known if (value := row[place]) is not None)
        found = compare_with_number(ours, best, direction, 1)
        cells = (f"{TITLES[direction]} R@1", str(found), "", "", _verdict(found, level=False))
        verdicts.append(Verdict(text, corpus, *cells))
    return verdicts


def judge_larger_gap(
    text: str, wide: tuple[str, Rows], narrow: tuple[str, Rows], row: str, baseline: str, k: int
) -> list[Verdict]:
    """Compare the gap between two rows on one corpus with that on another, unpaired as the queries differ.

    Args:
        text: text of the claim.
        wide: corpus and rows where the gap is claimed to be larger.
        narrow: the other corpus and its rows.
        row, baseline: the gap is row - baseline.
        k: k of R@k.
    """
    names = f"{wide[0]} against {narrow[0]}"
    if not all(rows.get(title) for _, rows in (wide, narrow) for title in (row, baseline)):
        return [Verdict(text, names, "", "", "", "", NOT_RUN)]
    verdicts = []
    for direction in DIRECTIONS:
        pairs = [paired_hits(rows[row], rows[baseline], direction, k) for _, rows in (wide, narrow)]
        gaps = [ours - theirs for ours, theirs in pairs]
        mean = 100 * float(np.mean(gaps[0]) - np.mean(gaps[1]))
        # Two independent means: their variances add up.
        half = 196 * math.sqrt(sum(float(np.var(gap)) / len(gap) for gap in gaps))
        found = Difference(mean, mean - half, mean + half, sum(map(len, gaps)))
        verdicts.append(
            Verdict(text, names, f"{TITLES[direction]} R@{k}", str(found), "", "", _verdict(found, level=False))
        )
    return verdicts


def _of_seed(rankings: Sequence[Ranking], seed: int) -> Ranking:
    """Return the ranking of a seed, or the only one of a system without seeds."""
    return rankings[seed] if len(rankings) > 1 else rankings[0]


def _verdict(found: Difference, level: bool, not_below: bool = False) -> str:
    if not_below:
        return HOLDS if found.high >= 0 else FAILS
    if level:
        return HOLDS if found.low <= 0 <= found.high else FAILS
    if found.low > 0:
        return HOLDS
    return f"{FAILS}: the opposite" if found.high < 0 else f"{FAILS}: no difference seen"


def _published_difference(published: Mapping[str, Recalls | None], claim: Claim, place: int) -> str:
    """Return the difference that the paper reports; empty if it does not."""
    ours, theirs = published.get(claim.row), published.get(claim.baseline)
    if not ours or not theirs or ours[place] is None or theirs[place] is None:
        return ""
    return f"{ours[place] - theirs[place]:+.1f}"  # type: ignore[operator]  # compared with None above
