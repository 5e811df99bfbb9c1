"""Results of a sweep: trials as JSON, CSV, Markdown and text tables, and the best trial."""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["finished", "stopped_early", "failed"]


@dataclass(frozen=True)
class TrialRow:
    """Result of a trial.

    Attributes:
        name: of its run.
        params: its own settings.
        outcome: `stopped_early` by the scheduler, `failed` with a problem, or `finished`.
        step: optimiser steps of its last evaluation, 0 if it had none.
        best: best evaluation of the selection metric, None without one.
        problem: why it failed, one line.
        curve: best so far by step.
    """

    name: str
    params: dict[str, Any]
    outcome: Outcome
    step: int = 0
    best: float | None = None
    problem: str = ""
    curve: dict[int, float] = field(default_factory=dict)


def best_trial(rows: list[TrialRow]) -> TrialRow | None:
    """Return the trial with the best evaluation; of equal ones the first started."""
    measured = [row for row in rows if row.best is not None]
    return max(measured, key=lambda row: row.best or 0.0, default=None)


def ranked(rows: list[TrialRow]) -> list[TrialRow]:
    """Return the trials sorted best first, those without an evaluation last."""
    return sorted(rows, key=lambda row: -1.0 if row.best is None else row.best, reverse=True)


def table_files(rows: list[TrialRow], metric: str) -> dict[str, str]:
    """Return the table as trials.json, trials.csv and trials.md."""
    return {
        "trials.json": json.dumps([asdict(row) for row in ranked(rows)], indent=1),
        "trials.csv": _csv(rows, metric),
        "trials.md": markdown_table(rows, metric),
    }


def markdown_table(rows: list[TrialRow], metric: str) -> str:
    """Return the trials as a Markdown table, the best first."""
    cells = _cells(rows, metric)
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def text_table(rows: list[TrialRow], metric: str) -> str:
    """Return the trials as a text table, the best first."""
    cells = _cells(rows, metric)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def format_value(value: Any) -> str:
    """Return a float with three significant digits, anything else as a string."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cells(rows: list[TrialRow], metric: str) -> list[list[str]]:
    names = parameter_names(rows)
    lines = [["trial", *names, metric, "step", "outcome"]]
    for row in ranked(rows):
        best = "-" if row.best is None else f"{row.best:.1f}"
        outcome = row.outcome.replace("_", " ") + (f": {row.problem}" if row.problem else "")
        values = [format_value(row.params.get(name, "")) for name in names]
        lines.append([row.name, *values, best, str(row.step), outcome])
    return lines


def _csv(rows: list[TrialRow], metric: str) -> str:
    names = parameter_names(rows)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", *names, metric, "step", "outcome", "problem"])
    for row in ranked(rows):
        values = [row.params.get(name, "") for name in names]
        writer.writerow([row.name, *values, "" if row.best is None else row.best, row.step, row.outcome, row.problem])
    return buffer.getvalue()


def parameter_names(rows: list[TrialRow]) -> list[str]:
    """Return the settings that were varied, in their order in the space."""
    return list(dict.fromkeys(name for row in rows for name in row.params))
