"""Pages of results: tables with titles and texts, as text for a terminal, as Markdown, and as HTML."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a page, each of its attributes may be empty.

    Attributes:
        title: heading.
        text: paragraph above the table.
        rows: table; the first row is the header.
    """

    title: str = ""
    text: str = ""
    rows: Rows = ()


@dataclass(frozen=True)
class Page:
    """A title, an introduction, and sections.

    Attributes:
        title: heading.
        text: introduction; may be empty.
        sections: parts in their order.
        command: command that makes the page; may be empty.
    """

    title: str
    text: str = ""
    sections: Sequence[Section] = ()
    command: str = ""

    def terminal(self) -> str:
        """Format for a terminal, with aligned columns and without the title."""
        parts = [self.text]
        for section in self.sections:
            parts += [section.title, section.text, align(section.rows) if section.rows else ""]
        return "\n\n".join(part for part in parts if part)

    def markdown(self, level: int = 1) -> str:
        """Format as Markdown.

        Args:
            level: level of the title's heading; titles of sections are one below.
        """
        parts = [f"{'#' * level} {self.title}\n"]
        parts += [f"```\n{self.command}\n```\n" if self.command else "", f"{self.text}\n" if self.text else ""]
        for section in self.sections:
            parts += [
                f"{'#' * (level + 1)} {section.title}\n" if section.title else "",
                f"{section.text}\n" if section.text else "",
                markdown_table(section.rows) if section.rows else "",
            ]
        return "\n".join(part for part in parts if part)

    def html(self, figures: Mapping[str, bytes]) -> str:
        """Format as a self-contained HTML page that requests nothing and runs no script.

        Args:
            figures: file name -> PNG, embedded above the tables.
        """
        folder = resources.files("brewclip.evaluation")
        style = folder.joinpath("report.css").read_text()
        return (
            jinja2.Environment(autoescape=True)
            .from_string(folder.joinpath("page.html").read_text())
            .render(
                page=self,
                style=style,
                style_hash=source_hash(style),
                figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
            )
        )


def align(rows: Rows) -> str:
    """Return rows of equal length as indented text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown_table(rows: Rows) -> str:
    """Format rows as a Markdown table; the first row is the header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def source_hash(text: str) -> str:
    """Return the Content-Security-Policy hash of an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
