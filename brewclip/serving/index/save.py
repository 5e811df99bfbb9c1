"""Writing the next version of an index beside the current one; index.json is replaced last, by the caller."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from brewclip.config.extras import describe_missing
from brewclip.errors import UserError
from brewclip.serving.index.changes import Changes
from brewclip.serving.index.embedding import ImageEncoder
from brewclip.serving.index.image_index import ImageIndex
from brewclip.serving.index.layout import IMAGES, IndexFacts
from brewclip.serving.index.nearby import QUERY_TEXTS, build_nearby

_BLOCK_ROWS = 4096
_MOST_THUMBNAIL_FILES = 64  # each save that adds images adds one; from here on all are written into one
_SAMPLED_IMAGES = 128  # queries for the recall of a system that reads no text
_THUMBNAIL_PLACE = ("thumbnail_file", "thumbnail_start", "thumbnail_bytes")


class VersionWriter:
    """Writes the files of one version of an index.

    Args:
        folder: of the index.
        old: the current version; None if there is none.
        changes: which rows of it stay, and which of the parts are added.
        parts: what was read since, see `parts.PART`.
    """

    def __init__(self, folder: Path, old: ImageIndex | None, changes: Changes, parts: pa.Table) -> None:
        self.folder, self.changes, self.parts = folder, changes, parts
        self._old = old
        self._stay = old.table.take(pa.array(changes.rows, pa.int64())) if old else IMAGES.empty_table()
        self._added = parts.take(pa.array(changes.added, pa.int64()))
        self._token = secrets.token_hex(4)

    def write(self, identity: dict[str, Any], checkpoint: str, embed_dim: int, unusable: pa.Table) -> IndexFacts:
        """Write all files but index.json, and return its content.

        Args:
            identity, checkpoint: of the system.
            embed_dim: width E.
            unusable: files that are no usable images, columns as the first ones of `parts.PART`.

        Raises:
            UserError: if they cannot be written.
        """
        listed = json.dumps(unusable.to_pylist()).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            vectors = self._write("vectors", "npy", lambda file: self._fill_vectors(file, embed_dim))
            places, thumbnails = self._write_thumbnails()
            table = self._table(places)
            images = self._write("images", "arrow", lambda file: _fill_table(file, table))
            problems = self._write("unusable", "json", lambda file: file.write(listed))
        except OSError as error:
            raise UserError(f"index {self.folder} cannot be written: {error.strerror}") from None
        version = _version(identity, table)
        facts = IndexFacts(identity, checkpoint, version, len(table), embed_dim, vectors, images, problems, thumbnails)
        return with_sizes(self.folder, facts)

    def _write(self, kind: str, suffix: str, fill: Callable[[BinaryIO], Any]) -> str:
        """Write one file through to the disk, and return its name."""
        name = f"{kind}-{self._token}.{suffix}"
        with open(self.folder / name, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        return name

    def _fill_vectors(self, file: BinaryIO, embed_dim: int) -> None:
        rows = self.changes.rows
        shape = (len(rows) + len(self.changes.added), embed_dim)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for start in range(0, len(rows), _BLOCK_ROWS):
            assert self._old is not None
            file.write(self._old.vectors[rows[start : start + _BLOCK_ROWS]].tobytes())
        for vector in self._added["vector"]:
            file.write(vector.as_py())

    def _write_thumbnails(self) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
        """Return the columns that say where each row's thumbnail is, and the names of the files."""
        old, rows = self._old, self.changes.rows
        files = list(old.facts.thumbnails) if old and self._keeps_files(old) else []
        again = (old.thumbnail(row) for row in rows) if old and not files else ()
        sizes: list[int] = []

        def fill(file: BinaryIO) -> None:
            sizes.extend(map(file.write, chain(again, (one.as_py() for one in self._added["thumbnail"]))))

        name = self._write("thumbnails", "bin", fill)
        if sum(sizes) == 0:  # an empty file cannot be mapped
            (self.folder / name).unlink()
        written = np.full(len(sizes), len(files)), np.cumsum([0, *sizes])[:-1], np.array(sizes, np.int64)
        kept = [self._stay[column].to_numpy() if files else [] for column in _THUMBNAIL_PLACE]
        places = [np.concatenate([before, new]).astype(np.int64) for before, new in zip(kept, written, strict=True)]
        return dict(zip(_THUMBNAIL_PLACE, places, strict=True)), [*files, *[name] * (sum(sizes) > 0)]

    def _keeps_files(self, old: ImageIndex) -> bool:
        """Return whether the files of thumbnails stay: few of them, and more than half of their bytes are of use."""
        total = sum(old.facts.file_bytes[name] for name in old.facts.thumbnails)
        used = int(self._stay["thumbnail_bytes"].to_numpy().sum())
        return len(old.facts.thumbnails) < _MOST_THUMBNAIL_FILES and 2 * used > total

    def _table(self, places: dict[str, NDArray[np.int64]]) -> pa.Table:
        columns: dict[str, Any] = {}
        for name in ("name", "size_bytes", "modified_ns"):
            values = self._stay[name].to_pylist()
            for place, row in enumerate(self.changes.rows):
                if row in self.changes.moved:
                    values[place] = self.parts[name][self.changes.moved[row]].as_py()
            columns[name] = values + self._added[name].to_pylist()
        for name in ("sha256", "width", "height"):
            columns[name] = self._stay[name].to_pylist() + self._added[name].to_pylist()
        columns["id"] = _with_new_ids(self._stay["id"].to_pylist(), self._added["sha256"].to_pylist())
        return pa.table(columns | places, schema=IMAGES).combine_chunks()


def add_nearby(folder: Path, facts: IndexFacts, encoder: ImageEncoder) -> tuple[IndexFacts, str]:
    """Write an approximate index of the vectors that were written, if faiss is installed; return a line on it."""
    if find_spec("faiss") is None:
        remedy = f"search in {facts.num_images} images is exact: {describe_missing('faiss', 'an approximate index')}"
        return facts, remedy
    vectors = np.load(folder / facts.vectors, mmap_mode="c")
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLED_IMAGES), dtype=np.int64)
    queries = encoder.embed_text(QUERY_TEXTS) if encoder.reads_text else vectors[sample].astype(np.float32)
    name = f"nearby-{secrets.token_hex(4)}.faiss"
    made = build_nearby(vectors.view(np.ndarray), queries, folder / name)
    kind = "texts" if encoder.reads_text else "images"
    note = (
        f"approximate index: recall@10 against exact search {made.recall:.3f}, over {len(queries)} {kind}; "
        f"{made.num_probes} of {made.num_lists} lists are looked into"
    )
    return with_sizes(folder, replace(facts, nearby=name)), note


def with_sizes(folder: Path, facts: IndexFacts) -> IndexFacts:
    """Return facts with the sizes of the files that they name."""
    return replace(facts, file_bytes={name: (folder / name).stat().st_size for name in facts.files()})


def _fill_table(file: BinaryIO, table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _with_new_ids(ids: list[int], digests: list[bytes]) -> list[int]:
    """Append ids of new images: from the content hash, with a counter if that id is taken."""
    used, found = set(ids), list(ids)
    for digest in digests:
        copies: Iterator[int] = (_number(digest + bytes(copy)) for copy in range(len(used) + 1))
        image_id = next(one for one in copies if one not in used)
        used.add(image_id)
        found.append(image_id)
    return found


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _version(identity: dict[str, Any], table: pa.Table) -> str:
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8)
    for values in (table["id"].to_numpy().tobytes(), *_encoded(table["name"].to_pylist())):
        digest.update(values)
    return digest.hexdigest()


def _encoded(names: Iterable[str]) -> Iterator[bytes]:
    return (f"\0{name}".encode(errors="surrogateescape") for name in names)
