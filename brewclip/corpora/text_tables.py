"""Rows of CSV, TSV and JSONL files as dictionaries, and the columns of nested ones."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from brewclip.corpora.source import Source
from brewclip.errors import UserError

DELIMITERS = (",", ";", "\t", "|")


def iter_json_rows(source: Source, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file.

    Raises:
        UserError: if a line is no JSON object.
    """
    for number, line in enumerate(source.lines(name), 1):
        row = source.json(name, line, number)
        if not isinstance(row, dict):
            raise UserError(f"--source {source.location.rstrip('/')}/{name}: line {number} is no JSON object")
        yield row


def iter_csv_rows(source: Source, name: str, required_columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV or TSV file; its delimiter is the one that splits the first line into these columns.

    Raises:
        UserError: if the file cannot be parsed.
    """
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KiB that csv allows
    usual, text = "\t" if name.lower().endswith(".tsv") else ",", source.text(name)
    needed = {column.lower() for column in required_columns}
    first = text.partition("\n")[0]
    fitting = [one for one in (usual, *DELIMITERS) if needed <= {cell.strip(' "').lower() for cell in first.split(one)}]
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=(fitting or [usual])[0], strict=True)
        yield from reader
    except csv.Error as error:
        where, kind = f"{source.location.rstrip('/')}/{name}", name.rpartition(".")[2].upper()
        raise UserError(f"--source {where} cannot be read as {kind}: {error}") from None


def iter_columns(rows: list[dict[str, Any]], prefix: str = "") -> Iterator[str]:
    """Yield the columns of rows; fields of nested objects as `column.field`, too."""
    for row in rows:
        for column, value in row.items():
            if column:
                yield f"{prefix}{column}"
                yield from iter_columns([value], f"{prefix}{column}.") if isinstance(value, dict) else ()


def value_of(row: dict[str, Any], column: str) -> Any:
    """Return the value of a column, which may be nested; None if the row has none."""
    if column in row or "." not in column:
        return row.get(column)
    first, _, rest = column.partition(".")
    inner = row.get(first)
    return value_of(inner, rest) if isinstance(inner, dict) else None


def cells_without_column(row: dict[Any, Any]) -> dict[str, Any]:
    """Return the surplus cells of a row under the name "", if there are any."""
    return {"": row[None]} if None in row else {}
