"""Figure of values with their 95 % intervals, one panel for each quantity."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

_COLOUR, _REFERENCE_COLOUR = "#0b6e99", "#888888"
_ROW_INCHES, _MARGIN_INCHES = 0.32, 0.75
_WIDTH_INCHES = 8.0


@dataclass(frozen=True)
class Value:
    """A value with its interval, in percent or percentage points."""

    label: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Values of one quantity.

    Attributes:
        title: the quantity, with its unit.
        values: from top to bottom.
        reference: where a vertical line is drawn, such as 0 for differences; None draws none.
    """

    title: str
    values: Sequence[Value]
    reference: float | None = None


def draw_intervals(title: str, panels: Sequence[Panel]) -> bytes:
    """Draw one panel below the other, each value as a point with its interval; return a PNG."""
    panels = [panel for panel in panels if panel.values]
    rows = [len(panel.values) for panel in panels]
    height = _ROW_INCHES * sum(rows) + _MARGIN_INCHES * (len(rows) + 0.5)
    figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    ratios = [_ROW_INCHES * count + 0.5 * _MARGIN_INCHES for count in rows]
    for axes, panel in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0], panels, strict=True
    ):
        places = range(len(panel.values))
        means = [value.mean for value in panel.values]
        ends = (
            [max(0.0, value.mean - value.low) for value in panel.values],
            [max(0.0, value.high - value.mean) for value in panel.values],
        )
        if panel.reference is not None:
            axes.axvline(panel.reference, color=_REFERENCE_COLOUR, linewidth=1)
        axes.errorbar(means, places, xerr=ends, fmt="o", color=_COLOUR, capsize=3, markersize=5)
        axes.set_yticks(places, [value.label for value in panel.values], fontsize=8)
        axes.set_ylim(len(panel.values) - 0.5, -0.5)
        axes.set_xlabel(panel.title, fontsize=8)
        axes.grid(axis="x", alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
