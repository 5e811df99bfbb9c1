"""Manifest of a split: its shards, and the position of every sample in them.

Three objects next to the shards, so that a split of a million shards opens in seconds:

- `manifest.json`: schema version, kind, counts, hashes of the other two; written last, so that a split either
  has a manifest and is whole, or does not exist;
- `shards.parquet`: a row for each shard: name, round, samples, size in bytes, sha256, crc32 of its index;
- `index.bin`: for each sample in the order of the shards, where its bytes end in the shard (u64) and their
  crc32 (u32), little-endian. The part of one shard is located by counting and read when it is needed.

Adopted shards stay in their place: the table has their URLs, and `members/` next to it lists what their samples hold
(see `adopted`).
"""

import functools
import hashlib
import json
import posixpath
import threading
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from brewclip.data.adopted import AdoptedSample, members_name, parse_members
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.manifest_check import (
    MAX_MANIFEST_BYTES,
    check_fields,
    check_index,
    largest_table,
    parse_fields,
    read_table,
)
from brewclip.data.schema import SCHEMA_VERSION, first_line
from brewclip.data.storage import Storage, open_storage
from brewclip.errors import ManifestError, ObjectMissing, UserError

MANIFEST = "manifest.json"
SHARDS = "shards.parquet"
INDEX = "index.bin"
INDEX_ENTRY = np.dtype([("end", "<u8"), ("crc32", "<u4")])
_WHOLE_INDEX_BYTES = 2**22  # of 350,000 samples
_CACHED_MEMBERS = 16  # shards whose list of members is cached: 400 bytes a sample


@dataclass(frozen=True)
class Summary:
    """The content of manifest.json.

    Attributes:
        kind: `recordings` before and `features` after extraction.
        num_images: images that differ in image_id.
        details: what else belongs to the split: Whisper's name and hash, counts of rejections.
    """

    corpus: str
    split: str
    kind: str
    num_samples: int
    num_shards: int
    num_rounds: int
    num_images: int
    size_bytes: int
    shards_sha256: str
    index_sha256: str
    details: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


class Manifest:
    """A stored split: counts in memory, offsets read shard by shard when they are needed.

    Attributes:
        url: folder of the split.
        summary: content of manifest.json.
        names, rounds, num_samples, size_bytes: a row for each shard, in order of round and name.
        first_sample: samples before each shard; one entry more than there are shards.
    """

    def __init__(self, storage: Storage, summary: Summary, table: dict[str, Any]) -> None:
        self.storage = storage
        self.url = storage.url
        self.summary = summary
        self.names = table["name"]
        self.rounds: np.ndarray = np.asarray(table["round"], dtype=np.int32)
        self.num_samples: np.ndarray = np.asarray(table["num_samples"], dtype=np.int64)
        self.size_bytes: np.ndarray = np.asarray(table["size_bytes"], dtype=np.int64)
        self._sha256 = table["sha256"]
        self._index_crc32 = table["index_crc32"]
        self._urls: Any = table.get("url")
        self._members_crc32: Any = table.get("members_crc32")
        self.first_sample: np.ndarray = np.concatenate([[0], np.cumsum(self.num_samples)])
        self._read_index = functools.lru_cache(maxsize=4096)(self._read_index_uncached)
        self._read_members = functools.lru_cache(_CACHED_MEMBERS)(self._read_members_uncached)
        self._open_folder = functools.lru_cache(maxsize=64)(open_storage)
        self._whole_index: bytes | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.summary.num_samples

    @property
    def sha256(self) -> str:
        """Hash that changes whenever any byte of the split does."""
        return hashlib.sha256(json.dumps(asdict(self.summary), sort_keys=True).encode()).hexdigest()

    def counts(self) -> list[tuple[str, int, int]]:
        """Return (name, count in manifest.json, count in the table of shards) of each count."""
        summary = self.summary
        return [
            ("num_samples", summary.num_samples, int(self.first_sample[-1])),
            ("num_shards", summary.num_shards, len(self.num_samples)),
            ("num_rounds", summary.num_rounds, len(np.unique(self.rounds))),
            ("size_bytes", summary.size_bytes, int(self.size_bytes.sum())),
        ]

    def name_of(self, shard: int) -> str:
        """Return the file name of a shard."""
        return str(self.names[shard])

    def sha256_of(self, shard: int) -> str:
        """Return the sha256 of a shard, hexadecimal."""
        return str(self._sha256[shard])

    def is_adopted(self, shard: int) -> bool:
        """Return whether a shard is an adopted tar, which has other members than ours."""
        return self._urls is not None and bool(self._urls[shard].as_py())

    def url_of(self, shard: int) -> str:
        """Return the absolute URL of a shard, wherever it is stored."""
        if not self.is_adopted(shard):
            return f"{self.url}/{self.name_of(shard)}"
        try:
            return resolve_url(self.url, str(self._urls[shard]))
        except ValueError as error:
            raise ManifestError(
                f"{self.url}/{SHARDS} has a URL that is none, {str(self._urls[shard])[:60]!r}"
            ) from error

    def label_of(self, shard: int) -> str:
        """Return the name of a shard in reports: its file name, or the URL of an adopted tar."""
        return self.url_of(shard) if self.is_adopted(shard) else self.name_of(shard)

    def place_of(self, shard: int) -> tuple[Storage, str]:
        """Return the storage that holds a shard, and its name there."""
        if not self.is_adopted(shard):
            return self.storage, self.name_of(shard)
        folder, _, name = self.url_of(shard).rpartition("/")
        storage = self._open_folder(folder)
        return storage, unquote(name) if isinstance(storage, FolderStorage) else name

    def disagreement(self, shard: int, what: str) -> ManifestError:
        """Return the error of a stored shard that is not the one of this manifest."""
        return ManifestError(f"shard {self.url_of(shard)} {what}: it is not the one of {self.url}/manifest.json")

    def check_size(self, shard: int, size: int) -> None:
        """Compare the size of a stored shard, in bytes, with the manifest's.

        Raises:
            ManifestError: if they differ.
        """
        expected = int(self.size_bytes[shard])
        if size != expected:
            raise self.disagreement(shard, f"has {size} bytes instead of {expected}")

    def members_of(self, shard: int) -> list[AdoptedSample]:
        """Return the members of the samples of an adopted shard, in their order.

        Raises:
            ManifestError: if the stored list is not the one that was written.
        """
        return self._read_members(int(shard))

    def _read_members_uncached(self, shard: int) -> list[AdoptedSample]:
        name = members_name(self.name_of(shard))
        try:
            data = self.storage.read(name)
        except ObjectMissing as error:
            raise ManifestError(f"{error}, the members of {self.url_of(shard)}: adopt it again") from error
        if zlib.crc32(data) != int(self._members_crc32[shard]):
            raise ManifestError(f"{self.url}/{name} does not hold the members of {self.url_of(shard)}: adopt it again")
        try:
            members = parse_members(data)
        except (ValueError, TypeError, LookupError) as error:
            raise ManifestError(f"{self.url}/{name} cannot be read ({first_line(error)}): adopt it again") from error
        if len(members) != self.num_samples[shard]:
            raise ManifestError(f"{self.url}/{name} lists {len(members)} samples of {self.num_samples[shard]}")
        return members

    def index_of(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where each sample of a shard begins and ends, and its crc32.

        Returns:
            offsets of shape (num_samples + 1,), int64, in bytes; crc32 of shape (num_samples,), uint32.

        Raises:
            ManifestError: if the stored index is not the one that was written.
        """
        return self._read_index(int(shard))

    def _read_index_uncached(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = (int(n) * INDEX_ENTRY.itemsize for n in self.first_sample[shard : shard + 2])
        try:
            data = self._read_index_bytes(start, stop)
        except ObjectMissing as error:
            raise ManifestError(f"{error}, the index of {self.name_of(shard)} and others: write it again") from error
        if len(data) != stop - start or zlib.crc32(data) != int(self._index_crc32[shard]):
            raise ManifestError(f"{self.url}/{INDEX} does not hold the index of {self.name_of(shard)}: write it again")
        entries = np.frombuffer(data, INDEX_ENTRY)
        offsets = np.concatenate([[0], entries["end"].astype(np.int64)])
        try:
            check_index(offsets, int(self.size_bytes[shard]))
        except ValueError as error:
            raise ManifestError(f"{self.url}/{INDEX}, the index of {self.name_of(shard)}: {error}") from error
        return offsets, entries["crc32"]

    def _read_index_bytes(self, start: int, stop: int) -> bytes:
        """Return a part of the index; a small index is read once, as a request costs more than its bytes."""
        size = len(self) * INDEX_ENTRY.itemsize
        if size > _WHOLE_INDEX_BYTES:
            return self.storage.read_range(INDEX, start, stop)
        with self._lock:
            if self._whole_index is None:
                self._whole_index = self.storage.read_range(INDEX, 0, size)
        return self._whole_index[start:stop]


def open_manifest(url: str, *, retry_seconds: float = 180.0) -> Manifest:
    """Open the split below a URL.

    Raises:
        ManifestError: if there is no manifest, or its parts do not belong together.
        StorageError: if storage refuses or cannot be reached.
    """
    storage = open_storage(url, retry_seconds=retry_seconds)
    try:
        fields = parse_fields(storage.read_range(MANIFEST, 0, MAX_MANIFEST_BYTES + 1))
        version = fields.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ManifestError(
                f"{url}/{MANIFEST} has schema version {repr(version)[:60]}, this is {SCHEMA_VERSION}: write it again"
            )
        check_fields(fields)
        summary = Summary(**fields)
        shards = storage.read_range(SHARDS, 0, largest_table(summary.num_shards) + 1)
    except ObjectMissing as error:
        raise ManifestError(f"no whole split at {url}: {error}; write or extract it first") from error
    except (ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise ManifestError(f"{url}/{MANIFEST} cannot be read: {first_line(error)}") from error
    if hashlib.sha256(shards).hexdigest() != summary.shards_sha256:
        raise ManifestError(f"{url}/{SHARDS} is not the one that {MANIFEST} names: write the split again")
    try:
        manifest = Manifest(storage, summary, read_table(shards, summary.num_shards))
    except ValueError as error:
        raise ManifestError(f"{url}/{SHARDS} cannot be read: {first_line(error)}: write the split again") from error
    for name, stated, stored in manifest.counts():
        if stated != stored:
            problem = f"says {name} {stated}, its shards have {stored}"
            raise ManifestError(f"{url}/{MANIFEST} {problem}: write the split again")
    return manifest


def resolve_url(folder_url: str, url: str) -> str:
    """Return the absolute URL of a URL relative to a folder, such as `../../raw/000.tar`.

    Raises:
        ValueError: if it is no URL.
    """
    if "://" in url:
        urlsplit(url)
        return url
    parts = urlsplit(folder_url)
    return f"{parts.scheme}://{parts.netloc}{posixpath.normpath(posixpath.join(parts.path or '/', url))}"
