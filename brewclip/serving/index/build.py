"""Building and updating an index: only files that are new or changed are read."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from brewclip.data.storage import Storage
from brewclip.errors import UserError
from brewclip.serving.index.changes import Changes, find_changes, states, unread
from brewclip.serving.index.embedding import ImageEncoder, Known, embed_files
from brewclip.serving.index.image_index import ImageIndex, describe_system
from brewclip.serving.index.layout import IMAGES, REMEDY
from brewclip.serving.index.nearby import Approximate, is_wanted
from brewclip.serving.index.parts import PART, IndexedImage, read_parts, remove_parts, write_part
from brewclip.serving.index.place import IndexPlace
from brewclip.serving.index.save import VersionWriter, add_nearby
from brewclip.serving.index.sources import ImageFile

_PART_IMAGES = 1024
_PART_SECONDS = 60.0  # work that an interruption may lose
_STATE_AND_PROBLEM = pa.schema([PART.field(name) for name in PART.names[:4]])


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        num_images: in the index.
        num_added, num_renamed, num_removed, num_unchanged: images.
        num_read: files that were read.
        unusable: name and reason of each file that is no usable image.
        notes: lines on the approximate index.
    """

    num_images: int
    num_added: int
    num_renamed: int
    num_removed: int
    num_unchanged: int
    num_read: int
    unusable: list[tuple[str, str]]
    notes: list[str]


def build_index(
    encoder: ImageEncoder,
    files: Sequence[ImageFile],
    out: str | Path,
    *,
    approximate: Approximate = "auto",
    start_progress: Callable[[int], Callable[[int], None]] = lambda total: lambda count: None,
) -> tuple[ImageIndex, BuildReport]:
    """Build an index, or bring it up to date. What an interrupted build has finished is not done again.

    Args:
        encoder: the system.
        files: those that the index shall hold, see `list_images`.
        out: folder or `s3://` prefix of the index.
        approximate: whether an approximate index is added; `auto`: above a million images, if faiss is installed.
        start_progress: called with the number of files to read; returns what is called with each number done since.

    Raises:
        UserError: if there is no usable image, the index was made by another system, or storage cannot be reached.
    """
    place = IndexPlace(out)
    with place.locked(), TemporaryDirectory() as scratch:
        build = IndexBuild(place, encoder.identity, encoder.name, files, Path(scratch))
        advance = start_progress(len(build.todo))
        for count in embed_to_parts(encoder, build.todo, place.storage, build.known):
            advance(count)
        return build.save(encoder, approximate)


def embed_to_parts(
    encoder: ImageEncoder, files: Sequence[ImageFile], storage: Storage, known: Known = lambda sha256: None
) -> Iterator[int]:
    """Embed files, write a part now and then, and yield how many are done after each batch."""
    waiting: list[IndexedImage] = []
    written = time.monotonic()
    for batch in embed_files(encoder, files, known):
        waiting += batch
        if len(waiting) >= _PART_IMAGES or time.monotonic() - written > _PART_SECONDS:
            write_part(storage, encoder.identity, waiting)
            waiting, written = [], time.monotonic()
        yield len(batch)
    if waiting:
        write_part(storage, encoder.identity, waiting)


class IndexBuild:
    """One build of an index by one system; `save` follows when all of `todo` is embedded.

    Args:
        place: of the index.
        identity, checkpoint: of the system.
        found: the files that the index shall hold, see `list_images`.
        scratch: folder for copies of parts.

    Attributes:
        old: the index as it is; None if there is none.
        todo: those of `found` that must be read.

    Raises:
        UserError: if the index was made by another system, or storage cannot be reached.
    """

    def __init__(
        self, place: IndexPlace, identity: dict[str, Any], checkpoint: str, found: Sequence[ImageFile], scratch: Path
    ) -> None:
        self.place, self.identity, self.checkpoint = place, identity, checkpoint
        self.found, self._scratch = found, scratch
        self.old = _open_own(place, identity, checkpoint)
        self._table = self.old.table if self.old else IMAGES.empty_table()
        self._unusable = _read_unusable(place.folder, self.old)
        self.todo = unread(self.found, self._table, read_parts(place.storage, identity, scratch), self._unusable)

    def known(self, sha256: bytes) -> IndexedImage | None:
        """Return what the index holds of a content."""
        row = self._rows_of_content.get(sha256)
        if self.old is None or row is None:
            return None
        entry = self.old.entry(row)
        file, vector = ImageFile("", 0, 0), self.old.vectors[row].tobytes()
        return IndexedImage(file, "", sha256, entry.width, entry.height, self.old.thumbnail(row), vector)

    def save(self, encoder: ImageEncoder, approximate: Approximate = "auto") -> tuple[ImageIndex, BuildReport]:
        """Write the index from what it was and all parts, unless nothing changed.

        Args:
            encoder: the system.
            approximate: see `build_index`.

        Raises:
            UserError: if no image is usable, or the index cannot be written; it stays as it was.
        """
        parts = read_parts(self.place.storage, self.identity, self._scratch)
        changes = find_changes(self._table, parts, self.found)
        unusable = self._still_unusable(parts)
        if not changes.rows and not changes.added:
            first = unusable.slice(0, 1).to_pylist()
            reason = f"; the first, {first[0]['name']}: {first[0]['problem']}" if first else ""
            raise UserError(f"none of {len(self.found)} images can be used{reason}")
        notes: list[str] = []
        wants_nearby = is_wanted(approximate, len(changes.rows) + len(changes.added))
        if self._is_stale(changes, parts) or (wants_nearby and not (self.old and self.old.facts.nearby)):
            writer = VersionWriter(self.place.folder, self.old, changes, parts)
            facts = writer.write(self.identity, self.checkpoint, encoder.embed_dim, unusable)
            if wants_nearby:
                facts, note = add_nearby(self.place.folder, facts, encoder)
                notes.append(note)
            self.place.publish(facts)
        remove_parts(self.place.storage)
        return ImageIndex.open(self.place.folder), self._report(changes, unusable, notes)

    def _is_stale(self, changes: Changes, parts: pa.Table) -> bool:
        return self.old is None or bool(len(parts) or changes.added or changes.moved or changes.num_removed)

    def _still_unusable(self, parts: pa.Table) -> pa.Table:
        table = pa.concat_tables([self._unusable, parts.select(_STATE_AND_PROBLEM.names)])
        there, problems = set(self.found), table["problem"].to_pylist()
        bad = [file in there and bool(problem) for file, problem in zip(states(table), problems, strict=True)]
        return table.filter(pa.array(bad, pa.bool_()))

    @cached_property
    def _rows_of_content(self) -> dict[bytes, int]:
        return {sha256: row for row, sha256 in enumerate(self._table["sha256"].to_pylist())}

    def _report(self, changes: Changes, unusable: pa.Table, notes: list[str]) -> BuildReport:
        return BuildReport(
            num_images=len(changes.rows) + len(changes.added),
            num_added=len(changes.added),
            num_renamed=changes.num_renamed,
            num_removed=changes.num_removed,
            num_unchanged=len(changes.rows) - changes.num_renamed,
            num_read=len(self.todo),
            unusable=list(zip(unusable["name"].to_pylist(), unusable["problem"].to_pylist(), strict=True)),
            notes=notes,
        )


def _open_own(place: IndexPlace, identity: dict[str, Any], checkpoint: str) -> ImageIndex | None:
    if place.read_facts() is None:
        return None
    place.fetch()
    old = ImageIndex.open(place.folder)
    if old.identity != identity:
        made, this = describe_system(old.identity, old.checkpoint), describe_system(identity, checkpoint)
        raise UserError(f"{place.location} was made by {made}, this is {this}: give another --out, or remove it")
    return old


def _read_unusable(folder: Path, index: ImageIndex | None) -> pa.Table:
    """Return the files that were no usable images when the index was saved."""
    if index is None:
        return _STATE_AND_PROBLEM.empty_table()
    try:
        return pa.Table.from_pylist(json.loads((folder / index.facts.unusable).read_bytes()), _STATE_AND_PROBLEM)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(f"index {folder} is damaged: {index.facts.unusable}: {error}: {REMEDY}") from None
