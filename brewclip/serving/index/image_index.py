"""A saved index, opened for search: vectors, the table of images and thumbnails are memory-mapped."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from brewclip.data.schema import BadSample
from brewclip.errors import StorageError, UserError
from brewclip.serving.index.layout import IMAGES, REMEDY, IndexFacts, read_facts
from brewclip.serving.index.sources import read_file

_LENGTH_TOLERANCE = 1e-2  # of float16, in 4096 dimensions


@dataclass(frozen=True)
class Match:
    """A retrieved image.

    Attributes:
        rank: from 1 on.
        score: cosine similarity.
        row: in the index.
        image_id: see `ImageEntry`.
        name: see `ImageEntry`.
    """

    rank: int
    score: float
    row: int
    image_id: str
    name: str


@dataclass(frozen=True)
class ImageEntry:
    """What an index knows of an image.

    Attributes:
        image_id: 16 hexadecimal digits that follow from the content, not from a path; stays when a file is renamed.
        name: where the image is: an absolute path or an s3:// URL. Not for those who have no access to it anyway.
        width, height: in pixels, as a viewer shows it.
        size_bytes: of the file.
        sha256: of the file's bytes, in hexadecimal digits.
    """

    image_id: str
    name: str
    width: int
    height: int
    size_bytes: int
    sha256: str


class ImageIndex:
    """An index of images; built by `brewclip.serving.index.build`, opened by `ImageIndex.open`. Safe in threads.

    An index that is replaced while it is open goes on as it was: its files are mapped.

    Attributes:
        facts: content of index.json.
        table: one row for each image, see `layout.IMAGES`.
        vectors: (N, E) float16, unit length.
    """

    def __init__(
        self,
        facts: IndexFacts,
        table: pa.Table,
        vectors: NDArray[np.float16],
        thumbnails: list[NDArray[np.uint8]],
        nearby: Any = None,
    ) -> None:
        self.facts, self.table, self.vectors = facts, table, vectors
        self._thumbnails, self._nearby = thumbnails, nearby

    @staticmethod
    def open(path: str | Path) -> "ImageIndex":
        """Open an index without reading its vectors.

        Raises:
            UserError: if it is missing, damaged or of another format.
        """
        folder = Path(path)
        for last_try in (False, True):
            facts = read_facts(folder)
            try:
                return _map_files(folder, facts)
            except FileNotFoundError as error:
                if last_try or read_facts(folder) == facts:  # else it was replaced between two reads
                    raise UserError(f"index {folder} lacks its file {error.filename}: {REMEDY}") from None
        raise AssertionError("unreachable")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the vectors depend on."""
        return self.facts.identity

    @property
    def checkpoint(self) -> str:
        """Name or URL that the system was loaded by which made the index."""
        return self.facts.checkpoint

    @property
    def version(self) -> str:
        """Digest that changes with the content."""
        return self.facts.version

    @property
    def embed_dim(self) -> int:
        """Width E of the vectors."""
        return self.facts.embed_dim

    def __len__(self) -> int:
        return self.facts.num_images

    def check_made_by(self, identity: dict[str, Any], checkpoint: str) -> None:
        """Check that a system is the one that built the index.

        Raises:
            UserError: if it is another one.
        """
        if self.identity != identity:
            raise UserError(
                f"the index was made by {describe_system(self.identity, self.checkpoint)}, this is "
                f"{describe_system(identity, checkpoint)}: {REMEDY}"
            )

    def nearest(
        self, queries: NDArray[np.float32], top: int, offset: int = 0, *, exact: bool = False
    ) -> list[list[Match]]:
        """Find the nearest images of each query; exactly, unless the index has an approximate index, too.

        Args:
            queries: (n, E), unit length.
            top: images for each query; fewer if there are no more.
            offset: number of nearest images that are passed over, as for a second page.
            exact: compare all images in any case.

        Returns:
            For each query its matches, nearest first, ties in the order of rows.

        Raises:
            ValueError: if top is less than 1, offset less than 0, or the widths differ.
            UserError: if a vector is damaged.
        """
        if top < 1 or offset < 0:
            raise ValueError(f"top is {top}, it must be 1 or more, and offset {offset}, it must be 0 or more")
        if queries.ndim != 2 or queries.shape[1] != self.embed_dim:
            raise ValueError(f"queries have shape {queries.shape}, the index has {self.embed_dim} dimensions")
        # Both import torch, which a process that shows images alone does not need.
        if self._nearby is None or exact:
            from brewclip.serving.index.exact import nearest_rows

            found = nearest_rows(self.vectors, queries, top + offset)
        else:
            from brewclip.serving.index.nearby import nearest_nearby

            found = nearest_nearby(self._nearby, self.vectors, queries, top + offset)
        return [self._matches(rows, scores, offset) for rows, scores in found]

    def _matches(self, rows: NDArray[np.int64], scores: NDArray[np.float32], offset: int) -> list[Match]:
        if not (np.abs(scores) <= 1 + _LENGTH_TOLERANCE).all():  # also one that is not a number
            raise UserError(f"the index has a vector that is not of unit length: {REMEDY}")
        names, ids = self.table["name"].take(pa.array(rows[offset:])).to_pylist(), self._ids[rows[offset:]]
        return [
            Match(rank, float(score), int(row), f"{image_id:016x}", name)
            for rank, (row, score, image_id, name) in enumerate(
                zip(rows[offset:], scores[offset:], ids, names, strict=True), start=offset + 1
            )
        ]

    def row_of(self, image_id: str) -> int:
        """Return the row of an image.

        Raises:
            LookupError: if there is none of that id.
        """
        try:
            number = np.uint64(int(image_id, 16) if len(image_id) == 16 else -1)
        except (ValueError, OverflowError):
            raise LookupError(f"no image {image_id!r}") from None
        place = int(np.searchsorted(self._ids, number, sorter=self._order))
        if place == len(self) or self._ids[self._order[place]] != number:
            raise LookupError(f"no image {image_id!r}")
        return int(self._order[place])

    def vector(self, row: int) -> NDArray[np.float32]:
        """Return the vector of an image, (E,) float32."""
        return np.asarray(self.vectors[row], np.float32)

    def entry(self, row: int) -> ImageEntry:
        """Return what is known of an image."""
        one = self._row(row)
        image_id = f"{one['id']:016x}"
        return ImageEntry(
            image_id, one["name"], one["width"], one["height"], one["size_bytes"], bytes(one["sha256"]).hex()
        )

    def thumbnail(self, row: int) -> bytes:
        """Return a JPEG of an image whose long side has at most 256 pixels.

        Raises:
            LookupError: if the index is damaged.
        """
        one = self._row(row)
        start, size = one["thumbnail_start"], one["thumbnail_bytes"]
        file = self._thumbnails[one["thumbnail_file"]] if one["thumbnail_file"] in range(len(self._thumbnails)) else ()
        if not 0 <= start < start + size <= len(file):
            raise LookupError(f"the index has no thumbnail of row {row}: {REMEDY}")
        return bytes(file[start : start + size])

    def read_image(self, row: int) -> bytes:
        """Return the bytes of the original file.

        Raises:
            LookupError: if it is gone or has changed since it was indexed.
        """
        entry = self.entry(row)
        try:
            data = read_file(entry.name, entry.size_bytes)
        except (BadSample, StorageError) as error:
            raise LookupError(f"image {entry.image_id} cannot be read: {error}") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise LookupError(f"image {entry.image_id} has changed since it was indexed")
        return data

    def _row(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise LookupError(f"no row {row} among {len(self)}")
        found: list[dict[str, Any]] = self.table.slice(row, 1).to_pylist()
        return found[0]

    @cached_property
    def _ids(self) -> NDArray[np.uint64]:
        return np.asarray(self.table["id"].to_numpy())

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self._ids)


def _map_files(folder: Path, facts: IndexFacts) -> ImageIndex:
    for name, size in facts.file_bytes.items():
        if (found := (folder / name).stat().st_size) != size:
            raise UserError(f"index {folder} is damaged: {name} has {found} bytes instead of {size}: {REMEDY}")
    try:
        vectors = np.load(folder / facts.vectors, mmap_mode="c" if facts.num_images else None, allow_pickle=False)
        table = pa.ipc.open_file(pa.memory_map(str(folder / facts.images))).read_all()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"index {folder} is damaged ({error}): {REMEDY}") from None
    if vectors.dtype != np.float16 or vectors.shape != (facts.num_images, facts.embed_dim):
        raise UserError(f"index {folder} is damaged: its vectors are {vectors.dtype} {vectors.shape}: {REMEDY}")
    if not table.schema.equals(IMAGES) or len(table) != facts.num_images:
        raise UserError(f"index {folder} is damaged: its table is not one of {facts.num_images} images: {REMEDY}")
    thumbnails: list[NDArray[np.uint8]] = [np.memmap(folder / name, np.uint8, "r") for name in facts.thumbnails]
    # Without faiss, search is exact: slower, and never worse.
    nearby = None
    if facts.nearby and find_spec("faiss"):
        from brewclip.serving.index.nearby import read_nearby

        nearby = read_nearby(folder / facts.nearby)
    return ImageIndex(facts, table, vectors.view(np.ndarray), thumbnails, nearby)


def describe_system(identity: dict[str, Any], checkpoint: str) -> str:
    """Return a readable description of the system that built an index."""
    settings = identity.get("frozen_settings", {})
    frozen = ", ".join(
        f"{name} {sha256[:8]} with {settings[name]['activation'] if name in settings else 'settings unknown'}"
        for name, sha256 in identity.get("frozen_sha256", {}).items()
    )
    weights = str(identity.get("weights_sha256", ""))[:8]
    return f"{checkpoint} (step {identity.get('step')}, weights {weights or 'none'}, CLIP {frozen})"
