"""Custom corpora: CSV, TSV, JSONL or Parquet tables with a row for each recording.

    python datasets/table.py --source /data/mine/table.csv --dest s3://bucket/mine
    python datasets/table.py --source s3://bucket/raw/table.parquet --dest file:///tmp/mine --test-fraction 0.2
    python datasets/table.py --source '/data/repository/*.parquet' --dest file:///tmp/mine --text-column sentence

Columns: image, audio; optionally text, image_id, speaker, split, emotion; flags name others. Paths are relative to the
table, or URLs; in Parquet, images and recordings may be in the table, as Hugging Face stores them. Rows with one image
(or image_id) are its captions, in their order. Without a column `split`, files named like train-00000-of-00002.parquet
give it, or else images are split by a seed; an image stays in its split when rows are added. See
docs/corpora/table.md.
"""

import fnmatch
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from brewclip.config.ranges import FRACTION_BELOW_1, SEED
from brewclip.corpora.options import SourceOptions
from brewclip.corpora.recipe import run_recipe
from brewclip.corpora.rounds import FileCorpus, Recording, place_in_unit_interval, safe_id
from brewclip.corpora.source import Source
from brewclip.corpora.text_tables import cells_without_column, iter_columns, iter_csv_rows, iter_json_rows, value_of
from brewclip.data.parquet import Blob, ParquetTable
from brewclip.errors import UserError

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
COLUMNS = ("image", "audio", "text", "image_id", "speaker", "emotion", "split")
# Other people's names of the split that chooses the best checkpoint.
SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev", "development": "dev"}
FILE_OF_SPLIT = re.compile(r"([A-Za-z]\w*?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.\w+")


@dataclass(frozen=True, kw_only=True)
class TableOptions(SourceOptions):
    """A table of images and recordings."""

    source: str
    """The table: path or URL of a .csv, .tsv, .jsonl or .parquet file, or a pattern ('data/*.parquet') of several. On a
    cluster, all machines must see it."""
    image_column: str = "image"
    """Column of the images: paths, URLs, or bytes in Parquet; `meta.image` is a field of a column. Empty: there are
    recordings only."""
    audio_column: str = "audio"
    """Column of the recordings, likewise."""
    text_column: str = "text"
    """Column of the spoken text."""
    image_id_column: str = "image_id"
    """Column of the images' names: rows with the same one are captions of one image. Without it, the path is the
    name."""
    speaker_column: str = "speaker"
    """Column of the speakers."""
    emotion_column: str = "emotion"
    """Column of the emotions."""
    split_column: str = "split"
    """Column of the splits; without it, names of files give them, or else a seed."""
    split_from_file_name: bool = True
    """Whether names of files like train-00000-of-00002.parquet give the split."""
    dev_fraction: Annotated[float, FRACTION_BELOW_1] = 0.1
    """Share of images in the split dev, if neither a column nor a file name gives it."""
    test_fraction: Annotated[float, FRACTION_BELOW_1] = 0.1
    """Share of images in the split test, likewise."""
    seed: Annotated[int, SEED] = 0
    """Seed of the split, likewise."""
    identical_images: Literal["warn", "refuse"] = "refuse"
    """What to do about images that have the same bytes in two splits."""


class Row(NamedTuple):
    """A row of a table: its values by the names of `COLUMNS`, its table and its number."""

    table: str
    number: int
    values: dict[str, Any]


def read_corpus(options: TableOptions) -> FileCorpus:
    """Read the tables; files and bytes are opened when samples are built."""
    fractions = options.dev_fraction, options.test_fraction
    if sum(fractions) >= 1:
        raise UserError(f"--dev-fraction and --test-fraction are {fractions}: they must be below 1 together")
    if not options.audio_column:
        raise UserError("--audio-column is empty: name the column of the recordings")
    source, tables = find_tables(options.source)
    corpus = options.dest.rstrip("/").rpartition("/")[2]
    splits = splits_of_files(tables) if options.split_from_file_name else {}
    listed = list(recordings(source, read_rows(source, tables, options), splits, options))
    return FileCorpus(corpus, source, listed, options.stored_side_pixels, remarks_on_splits(listed, splits))


def find_tables(location: str) -> tuple[Source, list[str]]:
    """Return the folder of the tables and their names in it; `*`, `?` and `**` stand for parts of names.

    Raises:
        UserError: if there is no such folder, no file fits, or a file is of another format.
    """
    folder, slash, name = location.rpartition("/")
    is_pattern = bool(set(location) & set("*?[")) and not Path(location).is_file()
    start = re.split(r"[^/]*[*?\[]", location)[0] if is_pattern else folder + slash
    if "://" not in location and not Path(start or ".").expanduser().is_dir():
        raise UserError(f"--source {location}: the folder {Path(start).expanduser().absolute()} does not exist")
    source, names = Source(start or "."), [name]
    if is_pattern:
        names = sorted(name for name in source.names if _fits(name, location[len(start) :]))
    where = f"{source.location.rstrip('/')}/{name}"
    if not names:
        raise UserError(f"--source {location} fits no file below {source.location}")
    if len(names) == 1 and Path(where).is_dir():
        raise UserError(f"--source {where} is a folder: name its table, or several as '{where}/*.parquet'")
    for one in names:
        if not one.lower().endswith(FORMATS):
            what = f"{source.location.rstrip('/')}/{one}"
            raise UserError(f"--source {what} is no table: name a file that ends in {', '.join(FORMATS)}")
    return source, names


def splits_of_files(tables: list[str]) -> dict[str, str]:
    """Return table -> split where all file names give it, as Hugging Face names files; else an empty dictionary."""
    matches = {name: FILE_OF_SPLIT.fullmatch(name.rpartition("/")[2]) for name in tables}
    return {name: _split_name(match[1]) for name, match in matches.items() if match} if all(matches.values()) else {}


def read_rows(source: Source, tables: list[str], options: TableOptions) -> Iterator[Row]:
    """Yield the rows of the tables with the columns that are wanted, under the names of `COLUMNS`.

    Raises:
        UserError: if a table is missing or damaged, or lacks a column that is needed or was named.
    """
    required = [column for column in (options.image_column, options.audio_column) if column]
    for name in tables:
        suffix = posixpath.splitext(name)[1].lower()
        if suffix == ".parquet":
            table = ParquetTable(source.storage, name)
            if table.warning:
                print(f"warning: {table.warning}", flush=True)
            rows = table.rows(_choose(source, name, table.columns, options))
        else:
            loose = list(iter_json_rows(source, name) if suffix == ".jsonl" else iter_csv_rows(source, name, required))
            columns = _choose(source, name, list(dict.fromkeys(iter_columns(loose))), options)
            rows = (
                {wanted: value_of(row, column) for wanted, column in columns.items()} | cells_without_column(row)
                for row in loose
            )
        for number, values in enumerate(rows, 1):
            yield Row(name, number, values)


def _choose(source: Source, name: str, there: list[str], options: TableOptions) -> dict[str, str]:
    """Return name in `COLUMNS` -> the table's own name of that column; letter case does not count."""
    by_lower = {column.strip().lower(): column for column in reversed(there)}
    chosen, missing = {}, []
    for wanted in COLUMNS:
        column = getattr(options, f"{wanted}_column")
        if column.lower() in by_lower:
            chosen[wanted] = by_lower[column.lower()]
        elif column and (wanted in ("image", "audio") or column != wanted):
            missing.append((column, f"--{wanted.replace('_', '-')}-column"))
    if missing:
        where = f"{source.location.rstrip('/')}/{name}"
        columns = " and no column ".join(column for column, _ in missing)
        flags = " and ".join(flag for _, flag in missing)
        hint = f"{flags} can name {'another' if len(missing) == 1 else 'others'}"
        raise UserError(f"--source {where} has no column {columns}, only: {', '.join(sorted(there))}; {hint}")
    return chosen


def recordings(
    source: Source, rows: Iterator[Row], splits: dict[str, str], options: TableOptions
) -> Iterator[Recording]:
    """Yield a recording for each row; one that names no files, repeats another or disagrees with it is marked."""
    images: dict[str, str] = {}
    pairs: set[tuple[str, str]] = set()
    for row in rows:
        values = row.values
        audio, group, path = _file(row, "audio")
        image, _, image_path = _file(row, "image")
        stem = f"{posixpath.splitext(row.table)[0]}-{row.number}"
        own_name = image_path or (stem if image else "") if options.image_column else path or stem
        name = _text(values.get("image_id")) or own_name
        if "split" in values:
            split = _split_name(_text(values["split"]), row)
        else:
            split = splits.get(row.table) or _drawn_split(name, options)
        problem = "no_image" if options.image_column and not image else "no_audio" if not audio else ""
        if not problem and "" in values:
            problem = "more_cells_than_columns"  # a comma that should be quoted: no cell can be trusted
        elif not problem and image == image_path and images.setdefault(name, image) != image:
            problem = "image_id_of_another_image"
        elif not problem and (name, audio) in pairs:
            problem = "duplicate"
        elif not problem and not split:
            problem = "no_split"
        elif not problem and source.is_missing(audio, list_objects=options.dry_run):
            problem = "missing_recording"
        elif not problem and image and source.is_missing(image, list_objects=options.dry_run):
            problem = "missing_image"
        pairs.add((name, audio))
        yield Recording(
            split=split,
            image_id=safe_id(name or f"row{row.number}"),
            audio=audio or f"row {row.number}",
            image=image,
            text=_text(values.get("text")),
            speaker=_text(values.get("speaker")),
            emotion=_text(values.get("emotion")),
            problem=problem,
            group=group,
        )


def remarks_on_splits(listed: list[Recording], splits: dict[str, str]) -> list[str]:
    """Return a note if splits from file names lack one that training or evaluation needs."""
    missing = [split for split in ("train", "dev", "test") if split not in {one.split for one in listed}]
    if not splits or not missing:
        return []
    return [
        f"the names of the files say the splits {', '.join(sorted(set(splits.values())))}, there is no "
        f"{' and no '.join(missing)}; --no-split-from-file-name draws all three by --seed"
    ]


def _fits(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern; only `**` stands for slashes, too."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern.replace("**/", ""))
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _file(row: Row, column: str) -> tuple[str, str, str]:
    """Return location, row group (if it is in the table) and path in the table of an image or recording.

    The path is relative to the source: the folder of a table in a deeper folder precedes it.
    """
    value = row.values.get(column)
    if isinstance(value, dict):  # of JSON
        value = value.get("path")
    path = _path(value.path if isinstance(value, Blob) else value)
    if path and "://" not in path and not path.startswith("/"):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(row.table), path))
    if isinstance(value, Blob) and value.cell:
        return str(value.cell), f"{row.table}[{value.cell.group}]", path
    return path, "", path


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


def _split_name(name: str, row: Row | None = None) -> str:
    name = SPLIT_NAMES.get(name.lower(), name.lower())
    if name and not re.fullmatch(r"[a-z0-9_]+", name):
        where = f"row {row.number} of {row.table}" if row else "a table"
        raise UserError(f"{where} has the split {name!r}: letters, digits and underscores only")
    return name


def _drawn_split(name: str, options: TableOptions) -> str:
    place = place_in_unit_interval(name, options.seed)
    if place < options.test_fraction:
        return "test"
    return "dev" if place < options.test_fraction + options.dev_fraction else "train"


if __name__ == "__main__":
    run_recipe(__doc__, TableOptions, read_corpus)
