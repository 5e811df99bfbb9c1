"""Align rows of text in columns for a terminal."""


def align(rows: list[list[str]]) -> str:
    """Return rows of equal length as indented text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
