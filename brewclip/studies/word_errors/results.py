"""Format the results of a word error study: tables, a figure, and JSON."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brewclip.metrics import RECALL_AT
from brewclip.studies.logistic import LogisticFit
from brewclip.studies.word_errors.study import HIT_AT, WordErrorEffect

_COLOURS = ("#0b6e99", "#c8553d", "#5b8e3e", "#7d5ba6", "#8a6d1c", "#444444")
_ENDS = ("", "_low", "_high")
_OFFSET = 0.006  # between the points of two systems, as a fraction of the width
_LARGEST_WER = 1.5  # of the axis; utterances above are drawn at the right edge


def count_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Return a header and one row per count over the split."""
    titles = {
        "corpus_wer": "WER of the corpus in %",
        "median_wer": "median WER of an utterance in %",
        "utterances": "utterances",
        "without_text": "samples without ground-truth text, left out",
        "nothing_spoken": "texts without a word, in no rate",
        "exact": "heard without an error",
        "silent": "silence: rejected as no speech",
        "rejected": "transcripts rejected by Whisper's rules",
        "empty": "nothing heard though words were spoken",
        "repetitive": "repetitive: compression ratio above the limit",
        "retried": "decoded again at a higher temperature",
        "invented": "invented: something heard, WER of 100 % or more",
    }
    return [["what", "count"]] + [[title, _cell(summary[name])] for name, title in titles.items()]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        total = sum(value.values())
        reasons = ", ".join(f"{name} {count}" for name, count in value.items())
        return f"{total} ({reasons})" if total else "0"
    return f"{value:.1f}" if isinstance(value, float) else "-" if value is None else str(value)


def slope_rows(effects: list[WordErrorEffect]) -> list[list[str]]:
    """Return a header and one row per system: the effect of WER on the log-odds of a hit, or why there is none."""
    rows = [["system", f"log-odds of R@{HIT_AT} per 10 points of WER [95 %]", "odds ratio [95 %]", "queries"]]
    for one in effects:
        if one.fit is None:
            rows.append([one.system, one.problem, "-", str(len(one.wer))])
            continue
        slope, low, high = _per_ten_points(one.fit)
        odds = f"{np.exp(slope):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"
        rows.append([one.system, f"{slope:+.3f} [{low:+.3f}, {high:+.3f}]", odds, str(len(one.wer))])
    return rows


def _per_ten_points(fit: LogisticFit) -> tuple[float, float, float]:
    """Return the slope and its interval per 10 percentage points of WER."""
    return 0.1 * fit.slope, 0.1 * fit.low, 0.1 * fit.high


def band_rows(effects: list[WordErrorEffect]) -> list[list[str]]:
    """Return a header and one row per system and band of WER: speech -> image recall with its interval."""
    rows = [["system", "WER in %", "queries", *(f"R@{k}" for k in RECALL_AT)]]
    for one in effects:
        for band in one.bands:
            cells = (_recall_cell(band.recall.get(k)) for k in RECALL_AT)
            rows.append([one.system, band.label, str(band.num_queries), *cells])
    return rows


def _recall_cell(recall: tuple[float, float, float] | None) -> str:
    return "-" if recall is None else f"{recall[0]:.1f} [{recall[1]:.1f}, {recall[2]:.1f}]"


def record_of(effect: WordErrorEffect) -> dict[str, Any]:
    """Return the results of a system as plain JSON; WER as a fraction, recall in percent."""
    fit = effect.fit
    return {
        "system": effect.system,
        "num_queries": len(effect.wer),
        "hit_at": HIT_AT,
        "intercept": fit and fit.intercept,
        "slope": fit and fit.slope,
        "slope_low": fit and fit.low,
        "slope_high": fit and fit.high,
        "problem": effect.problem,
        "bands": [
            {
                "wer": band.label,
                "num_queries": band.num_queries,
                **{f"R{k}{end}": v for k, row in band.recall.items() for end, v in zip(_ENDS, row, strict=True)},
            }
            for band in effect.bands
        ],
    }


def draw_effects(effects: list[WordErrorEffect], title: str) -> bytes:
    """Plot the share of hits over WER: fitted curves with intervals, bands, and a histogram of the queries.

    Returns:
        Bytes of a PNG.
    """
    figure = Figure(figsize=(8, 5.6), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    limit = 100 * min(_LARGEST_WER, max(0.5, *(float(one.wer.max()) for one in effects)))
    for number, one in enumerate(effects):
        _draw_effect(above, one, _COLOURS[number % len(_COLOURS)], limit, number - (len(effects) - 1) / 2)
    above.set(ylim=(0, 102), ylabel=f"R@{HIT_AT}, speech -> image, in %", title=title)
    above.grid(alpha=0.25)
    above.legend(loc="best", fontsize=8)
    wer = 100 * effects[0].wer
    below.hist(np.minimum(wer, limit), bins=np.linspace(0, limit, 31).tolist(), color="#999999")
    below.set(
        xlim=(-0.02 * limit, 1.02 * limit),
        xlabel="word error rate of the utterance, in %",
        ylabel="queries",
        yscale="log",
    )
    if wer.max() > limit:
        below.set_xlabel(f"word error rate of the utterance, in % ({np.sum(wer > limit)} above, at the right edge)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_effect(axes: Axes, one: WordErrorEffect, colour: str, limit: float, offset: float) -> None:
    """Draw one system; the points of several systems are shifted by `offset`."""
    label = f"{one.system}: no curve"
    if one.fit is not None:
        grid = np.linspace(0, limit, 200)
        share, lowest, highest = (100 * values for values in one.fit.predict(grid / 100))
        axes.fill_between(grid, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        axes.plot(grid, share, color=colour)
        slope, low, high = _per_ten_points(one.fit)
        label = f"{one.system}: {slope:+.2f} [{low:+.2f}, {high:+.2f}] log-odds per 10 points"
    filled = [band for band in one.bands if band.num_queries]
    places = [min(100 * band.mean_wer, limit) + _OFFSET * limit * offset for band in filled]
    means, lows, highs = np.array([band.recall[HIT_AT] for band in filled]).T
    axes.errorbar(
        places, means, (means - lows, highs - means), fmt="o", color=colour, capsize=3, markersize=5, label=label
    )
