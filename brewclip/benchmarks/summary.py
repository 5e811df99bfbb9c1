"""Markdown table of all benchmarks, from their JSON files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from brewclip.benchmarks.measure import show

OPENING, CLOSING = "<!-- benchmarks -->", "<!-- /benchmarks -->"
_HEAD = (
    "| what | ours | baseline | ratio (spread) | target | | command |",
    "|---|---|---|---|---|---|---|",
)


def render(records: list[dict[str, Any]], failed: list[str]) -> str:
    """Return the table under a line with date and machine of the measurements.

    Args:
        records: contents of the benchmarks' JSON files.
        failed: names of benchmarks without results.
    """
    machines = sorted({re.sub(r", load [\d.]+", "", record["machine"]) for record in records})
    dates = sorted({record["date"] for record in records})
    lines = [f"Measured {' to '.join(dict.fromkeys([*dates[:1], *dates[-1:]]))} on {'; '.join(machines)}.", "", *_HEAD]
    lines += [row for record in records for row in _rows(record)]
    lines += [f"| {name} | failed | | | | FAILED | `python jobs/benchmark.py {name}` |" for name in failed]
    return "\n".join(lines) + "\n"


def _rows(record: dict[str, Any]) -> Iterator[str]:
    split = record.get("options", {}).get("split", "")
    command = f"`python jobs/benchmark.py {record['benchmark']}{' --split URL' * bool(split)}`"
    arithmetic = record.get("arithmetic")  # of `train`: one comparison; of `scaling`: rows of its own table
    own = [arithmetic["comparison"]] if isinstance(arithmetic, dict) else []
    for item in [*own, *record.get("comparisons", [])]:
        low, high = item["ratio_spread"]
        ratio = f"{item['ratio']:.2f} ({low:.2f} to {high:.2f})"
        ours, theirs = (show(median(item[side])) for side in ("ours", "theirs"))
        target, verdict = "", ""
        if item["target"]:
            target, verdict = f">= {item['target']:g}", "reached" if item["ratio"] >= item["target"] else "MISSED"
        yield f"| {item['name']} | {ours} {item['unit']} | {theirs} | {ratio} | {target} | {verdict} | {command} |"
    for item in record.get("limits", []):
        target, verdict = "", ""
        if item["most"]:
            target, verdict = f"<= {show(item['most'])}", "reached" if item["value"] <= item["most"] else "MISSED"
        yield f"| {item['name']} | {show(item['value'])} {item['unit']} | | | {target} | {verdict} | {command} |"


def read_records(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return the records of these benchmarks that exist in a folder."""
    return [json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").is_file()]


def put_between_markers(path: Path, text: str) -> bool:
    """Replace the text between the markers of a file; return False if it has none."""
    before = path.read_text() if path.is_file() else ""
    if OPENING not in before or CLOSING not in before:
        return False
    head, _, rest = before.partition(OPENING)
    path.write_text(f"{head}{OPENING}\n{text}{CLOSING}{rest.partition(CLOSING)[2]}")
    return True
