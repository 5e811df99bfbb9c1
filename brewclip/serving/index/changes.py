"""What changed since an index was saved: which rows stay, which files are new, renamed or gone."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from brewclip.serving.index.sources import ImageFile

_STATE = ("name", "size_bytes", "modified_ns")


@dataclass(frozen=True)
class Changes:
    """The rows of the next version of an index.

    Attributes:
        rows: rows of the old table that stay, in their order.
        moved: row of the old table -> row of the parts that has its new name or time; the content is the same.
        added: rows of the parts that come behind them.
        num_renamed: rows that stay with another name.
        num_removed: rows that do not stay.
    """

    rows: list[int] = field(default_factory=list)
    moved: dict[int, int] = field(default_factory=dict)
    added: list[int] = field(default_factory=list)
    num_renamed: int = 0
    num_removed: int = 0


def states(table: pa.Table) -> Iterable[ImageFile]:
    """Return name, size and time of each row of a table."""
    return map(ImageFile, *(table[name].to_pylist() for name in _STATE))


def unread(found: Iterable[ImageFile], *known: pa.Table) -> list[ImageFile]:
    """Return the files that no table has with their size and time: these must be read."""
    seen = {file for table in known for file in states(table)}
    return [file for file in found if file not in seen]


def find_changes(old: pa.Table, parts: pa.Table, found: Iterable[ImageFile]) -> Changes:
    """Compare an index with the files that are there now.

    A row stays if its file has the same size and time, or if a file that was read has its content: under the same name
    (touched), or under another one (renamed).

    Args:
        old: table of the index.
        parts: files that were read since, see `parts.PART`.
        found: files that are there.
    """
    there = set(found)
    stays = {row for row, file in enumerate(states(old)) if file in there}
    old_names = old["name"].to_pylist()
    kept_names = {old_names[row] for row in stays}
    free: dict[bytes, list[int]] = defaultdict(list)
    for row, sha256 in enumerate(old["sha256"].to_pylist()):
        if row not in stays:
            free[sha256].append(row)
    moved, added, renamed = {}, [], 0
    for row, file in _fresh(parts, there, kept_names):
        same = free[parts["sha256"][row].as_py()]
        if not same:
            added.append(row)
            continue
        before = next((one for one in same if old_names[one] == file.name), same[0])
        same.remove(before)
        moved[before] = row
        renamed += old_names[before] != file.name
    rows = sorted(stays | moved.keys())
    return Changes(rows, moved, added, renamed, len(old) - len(rows))


def _fresh(parts: pa.Table, there: set[ImageFile], kept_names: set[str]) -> list[tuple[int, ImageFile]]:
    """Return the usable rows of parts whose file is as it was read, each name once, sorted by name."""
    problems = parts["problem"].to_pylist()
    fresh = {
        file.name: (row, file)
        for row, file in enumerate(states(parts))
        if file in there and not problems[row] and file.name not in kept_names
    }
    return [fresh[name] for name in sorted(fresh)]
