"""A corpus of one's own: a CSV, TSV, JSONL or Parquet table with a row for each recording.

    python datasets/table.py --source /data/mine/table.csv --dest s3://bucket/mine
    python datasets/table.py --source s3://bucket/raw/table.parquet --dest file:///tmp/mine --test-fraction 0.2

Columns: image, audio; optionally text, image_id, speaker, split, emotion. Paths are relative to the table, or URLs.
Rows with one image (or image_id) are its captions, in their order. Without a column `split`, pictures are split by
a seed; a picture stays in its split when rows are added.
"""

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from brewclip.config import UserError
from brewclip.corpora import FileCorpus, Recording, Source, place_in_unit_interval, safe_id
from brewclip.recipe import SourceOptions, run_recipe

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
REQUIRED = ("image", "audio")
# Other people's names of the split that chooses the best checkpoint.
SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev", "development": "dev"}


@dataclass(frozen=True, kw_only=True)
class TableOptions(SourceOptions):
    """A table of pictures and recordings."""

    source: str
    """The table: path or URL of a .csv, .tsv, .jsonl or .parquet file. On a cluster, all machines must see it."""
    dev_fraction: float = 0.1
    """Share of pictures in the split dev, if the table has no column `split`."""
    test_fraction: float = 0.1
    """Share of pictures in the split test, likewise."""
    seed: int = 0
    """Seed of the split, likewise."""


def read_corpus(options: TableOptions) -> FileCorpus:
    """Read the table; its files are opened when samples are made."""
    fractions = options.dev_fraction, options.test_fraction
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise UserError(f"--dev-fraction and --test-fraction are {fractions}: 0 or more, and below 1 together")
    folder, slash, name = options.source.rpartition("/")
    source = Source(folder + slash or ".")
    corpus = options.dest.rstrip("/").rpartition("/")[2]
    return FileCorpus(corpus, source, recordings(read_rows(source, name), options), options.stored_side_pixels)


def read_rows(source: Source, name: str) -> list[dict[str, Any]]:
    """Return the rows as they are, with lower-case column names.

    Raises:
        UserError: if the table is missing, of another format, damaged, or lacks a needed column.
    """
    suffix = posixpath.splitext(name)[1].lower()
    where = f"{source.location.rstrip('/')}/{name}"
    if suffix not in FORMATS:
        raise UserError(f"--source {where} is no table: name a file that ends in {', '.join(FORMATS)}")
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KiB that csv allows
    try:
        if suffix == ".parquet":
            rows = _parquet(source.storage.read(name))
        elif suffix == ".jsonl":
            rows = [source.json(name, line, number) for number, line in enumerate(source.lines(name), 1)]
        else:
            text = io.StringIO(source.text(name), newline="")
            rows = list(csv.DictReader(text, delimiter="," if suffix == ".csv" else "\t", strict=True))
    except csv.Error as error:
        raise UserError(f"--source {where} cannot be read as {suffix[1:].upper()}: {error}") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"--source {where} has lines that are no JSON objects")
    rows = [{str(column or "").strip().lower(): value for column, value in row.items()} for row in rows]
    columns = {column for row in rows for column in row}
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise UserError(
            f"--source {where} has no column {' and no column '.join(missing)}, only: {', '.join(sorted(columns))}"
        )
    return rows


def recordings(rows: list[dict[str, Any]], options: TableOptions) -> Iterator[Recording]:
    """Yield a recording for each row; one that names no files, repeats another or disagrees with it is marked."""
    has_split = any("split" in row for row in rows)
    images: dict[str, str] = {}
    pairs: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, 1):
        image, audio = _path(row.get("image")), _path(row.get("audio"))
        name = _text(row.get("image_id")) or image
        problem = "no_image" if not image else "no_audio" if not audio else ""
        if not problem and "" in row:
            problem = "more_cells_than_columns"  # a comma that should be quoted: no cell can be trusted
        elif not problem and images.setdefault(name, image) != image:
            problem = "image_id_of_another_image"
        elif not problem and (name, audio) in pairs:
            problem = "duplicate"
        pairs.add((name, audio))
        split = _split(row, number) if has_split else _drawn_split(name, options)
        yield Recording(
            split=split,
            image_id=safe_id(name or f"row{number}"),
            audio=audio or f"row {number}",
            image=image,
            text=_text(row.get("text")),
            speaker=_text(row.get("speaker")),
            emotion=_text(row.get("emotion")),
            problem=problem or ("" if split else "no_split"),
        )


def _parquet(data: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(io.BytesIO(data)).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"--source is no Parquet file: {str(error).splitlines()[0]}") from None


def _text(value: Any) -> str:
    """Return a cell as text: empty for none, `7` for 7.0 (a column of numbers with gaps)."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).strip()


def _path(value: Any) -> str:
    """Return a path in one spelling; a table made on Windows has backslashes."""
    path = _text(value)
    return path if "://" in path or not path else posixpath.normpath(path.replace("\\", "/"))


def _split(row: dict[str, Any], number: int) -> str:
    name = _text(row.get("split")).lower()
    name = SPLIT_NAMES.get(name, name)
    if name and not re.fullmatch(r"[a-z0-9_]+", name):
        raise UserError(f"row {number} has the split {name!r}: letters, digits and underscores only")
    return name


def _drawn_split(name: str, options: TableOptions) -> str:
    place = place_in_unit_interval(name, options.seed)
    if place < options.test_fraction:
        return "test"
    return "dev" if place < options.test_fraction + options.dev_fraction else "train"


if __name__ == "__main__":
    run_recipe(__doc__, TableOptions, read_corpus)
