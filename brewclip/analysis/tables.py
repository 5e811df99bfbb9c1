"""Recall tables, as plain text for terminals and as Markdown."""

from collections.abc import Mapping

from brewclip.metrics import DIRECTIONS, RECALL_AT

TITLES = {"speech_to_image": "speech -> image", "image_to_speech": "image -> speech"}


def recall_cell(metrics: Mapping[str, float], direction: str, k: int) -> str:
    """Return recall in percent with its 95 % interval: `43.5 [40.1, 46.8]`."""
    name = f"{direction}/R{k}"
    return f"{metrics[name]:.1f} [{metrics[f'{name}_low']:.1f}, {metrics[f'{name}_high']:.1f}]"


def recall_rows(results: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return header and one row for each system: its name, then R@1/5/10 both ways."""
    header = ["system"] + [f"{TITLES[direction]} R@{k}" for direction in DIRECTIONS for k in RECALL_AT]
    rows = [
        [name] + [recall_cell(metrics, direction, k) for direction in DIRECTIONS for k in RECALL_AT]
        for name, metrics in results.items()
    ]
    return [header, *rows]


def markdown_table(rows: list[list[str]]) -> str:
    """Return rows, the first of them the header, as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def text_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the recall tables for a terminal, one for each direction, at most 80 columns wide."""
    width = max(len(name) for name in ["system", *results]) + 2
    lines = []
    for direction in DIRECTIONS:
        lines.append(f"{TITLES[direction]}, recall in % [95 % interval]")
        lines.append("  " + "system".ljust(width) + "".join(f"R@{k}".ljust(20) for k in RECALL_AT))
        for name, metrics in results.items():
            cells = (recall_cell(metrics, direction, k).ljust(20) for k in RECALL_AT)
            lines.append("  " + name.ljust(width) + "".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)
