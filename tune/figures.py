"""Figures of a sweep as PNG files: results by setting, and early stopping of trials."""

import io
import math
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws to memory on a machine without a screen
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tune.results import TrialRow, best_trial, format_value
from tune.spaces import Space

_COLOURS = colormaps["viridis"]
_STYLE: dict[str, tuple[str, Any]] = {"finished": ("o", "-"), "stopped_early": ("s", "--"), "failed": ("x", ":")}
_LEGEND = {"finished": "finished", "stopped_early": "stopped early", "failed": "failed"}


def draw_figures(rows: list[TrialRow], space: Space, metric: str) -> dict[str, bytes]:
    """Return the figures by file name; trials without an evaluation are left out.

    Args:
        rows: the trials.
        space: the search space.
        metric: the selection metric, for the labels.
    """
    measured = [row for row in rows if row.best is not None]
    if not measured:
        return {}
    return {
        "parallel_coordinates.png": _png(_draw_parallel_coordinates(measured, space, metric)),
        "recall_by_parameter.png": _png(_draw_recall_by_parameter(measured, space, metric)),
        "early_stopping.png": _png(_draw_early_stopping(measured, metric)),
    }


def _draw_parallel_coordinates(rows: list[TrialRow], space: Space, metric: str) -> Figure:
    """Draw a line per trial through its settings to its recall; the best one is thick."""
    names = [*space, metric]
    figure = Figure(figsize=(2.6 * len(names) + 1.5, 5), layout="constrained")
    axes = figure.add_subplot()
    colour, scale = _colour_scale(rows)
    scales = [_VerticalScale([row.params[name] for row in rows], space[name]) for name in space]
    results = [row.best or 0.0 for row in rows]
    scales.append(_VerticalScale(results, ("uniform", min(results), max(results))))
    best = best_trial(rows)
    for row in sorted(rows, key=lambda row: row.best or 0.0):
        values = [*(row.params[name] for name in space), row.best]
        heights = [axis.of(value) for axis, value in zip(scales, values, strict=True)]
        marker, line = _STYLE[row.outcome]
        width = 3.0 if row is best else 1.4
        axes.plot(heights, color=colour(row.best), linestyle=line, marker=marker, linewidth=width, markersize=5)
    for column, axis in enumerate(scales):
        axes.axvline(column, color="0.4", linewidth=1, zorder=0)
        for value, height in axis.ticks():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
            axes.text(column - 0.03, height, format_value(value), ha="right", va="center", fontsize=9, bbox=box)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.35, len(names) - 0.8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(rows)} trials; the thick line is the best one")
    figure.colorbar(scale, ax=axes, label=metric, pad=0.01)
    _add_outcome_legend(figure, rows)
    return figure


def _draw_recall_by_parameter(rows: list[TrialRow], space: Space, metric: str) -> Figure:
    """Draw a panel per setting with the recall of each trial against its value."""
    figure = Figure(figsize=(4.0 * len(space) + 0.5, 4), layout="constrained")
    panels = figure.subplots(1, len(space), sharey=True, squeeze=False)[0]
    best = best_trial(rows)
    for panel, (name, values) in zip(panels, space.items(), strict=True):
        for row in rows:
            position = values.index(row.params[name]) if isinstance(values, list) else row.params[name]
            marker, _ = _STYLE[row.outcome]
            colour = "tab:red" if row is best else "tab:blue"
            panel.plot(position, row.best, marker, color=colour, markersize=8, alpha=0.75)
        if isinstance(values, list):
            panel.set_xticks(range(len(values)), [format_value(value) for value in values])
            panel.set_xlim(-0.5, len(values) - 0.5)
        elif values[0] == "log_uniform":
            panel.set_xscale("log")
            panel.set_xlim(values[1] / 1.3, values[2] * 1.3)
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(metric)
    figure.suptitle("best dev result of each trial; red is the best of all")
    _add_outcome_legend(figure, rows)
    return figure


def _draw_early_stopping(rows: list[TrialRow], metric: str) -> Figure:
    """Draw the best result so far of each trial by step; a line that ends early was stopped by the scheduler."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes: Axes = figure.add_subplot()
    colour, scale = _colour_scale(rows)
    for row in rows:
        marker, line = _STYLE[row.outcome]
        steps, values = list(row.curve), list(row.curve.values())
        axes.plot(steps, values, color=colour(row.best), linestyle=line, linewidth=1.6)
        axes.plot(steps[-1:], values[-1:], marker, color=colour(row.best), markersize=8)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"{metric}, best so far")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    stopped = sum(row.outcome == "stopped_early" for row in rows)
    axes.set_title(f"{stopped} of {len(rows)} trials stopped early")
    figure.colorbar(scale, ax=axes, label=f"{metric}, best of the trial")
    _add_outcome_legend(figure, rows)
    return figure


class _VerticalScale:
    """Positions of the values of a setting on a vertical axis from 0 to 1."""

    def __init__(self, seen: list[Any], values: list[Any] | tuple[Any, ...]) -> None:
        self.choices = values if isinstance(values, list) else None
        self.log = not isinstance(values, list) and values[0] == "log_uniform"
        self.low: float = 0 if isinstance(values, list) else values[1]
        self.high: float = len(values) - 1 if isinstance(values, list) else values[2]
        self.seen = seen

    def of(self, value: Any) -> float:
        """Return the height of a value."""
        number = self.choices.index(value) if self.choices is not None else value
        low, high = (math.log(x) if self.log else x for x in (self.low, self.high))
        return 0.5 if high <= low else ((math.log(number) if self.log else number) - low) / (high - low)

    def ticks(self) -> list[tuple[Any, float]]:
        """Return the values to label on the axis, with their heights."""
        if self.choices is not None:
            return [(choice, self.of(choice)) for choice in self.choices]
        if self.high <= self.low:
            return [(float(self.low), 0.5)]
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            values = {float(self.low), float(self.high)} | {10.0**power for power in range(first, last + 1)}
        else:
            values = {self.low + (self.high - self.low) * part / 4 for part in range(5)}
        ticks: list[tuple[Any, float]] = []
        for value in sorted(values):  # labels must not overlap
            if not ticks or self.of(value) - ticks[-1][1] > 0.05:
                ticks.append((float(value), self.of(value)))
        return ticks


def _colour_scale(rows: list[TrialRow]) -> tuple[Any, ScalarMappable]:
    results = [row.best or 0.0 for row in rows]
    low, high = min(results), max(results)
    norm = Normalize(low, high if high > low else low + 1)
    return (lambda value: _COLOURS(norm(value))), ScalarMappable(norm, _COLOURS)


def _add_outcome_legend(figure: Figure, rows: list[TrialRow]) -> None:
    from matplotlib.lines import Line2D

    shown = [outcome for outcome in _STYLE if any(row.outcome == outcome for row in rows)]
    lines = [
        Line2D([], [], color="0.3", marker=_STYLE[one][0], linestyle=_STYLE[one][1], label=_LEGEND[one])
        for one in shown
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()
