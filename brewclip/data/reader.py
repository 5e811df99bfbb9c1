"""Reader of the samples of a split by number: range requests at the manifest's offsets, every byte checked.

The size of a shard and the crc32 of each sample are compared with the manifest whenever they are read, so no
truncated, flipped or exchanged bytes pass for a sample.
"""

import hashlib
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from brewclip.data.adopted import slice_samples
from brewclip.data.embeddings import SplitEmbeddings
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.manifest import Manifest
from brewclip.data.order import Extent
from brewclip.data.schema import BadSample, Sample, unpack_sample
from brewclip.errors import ManifestError, ObjectMissing, TooManyBadSamples

Decoded = TypeVar("Decoded")
RawSample = memoryview | Sample | BadSample
"""Tar bytes of a sample of ours, a sample of an adopted shard as views of what was read, or an error."""
_EXTENT_BYTES = 4 * 2**20
_SMALLEST_COUNT_FOR_A_SHARE = 1000
_LISTED_REJECTIONS = 1000


class Rejections:
    """Counts of rejected samples by cause, and a list of the first thousand. Thread-safe."""

    def __init__(self, url: str, max_fraction: float = 1.0) -> None:
        self.url, self.max_fraction = url, max_fraction
        self.listed: list[dict[str, str | int]] = []
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Number of rejected samples; one that is read several times counts each time."""
        return sum(self.counts.values())

    def add(self, shard: str, index: int, error: BadSample) -> None:
        """Count one sample."""
        with self._lock:
            self.counts[error.cause] = self.counts.get(error.cause, 0) + 1
            if len(self.listed) < _LISTED_REJECTIONS:
                self.listed.append({"shard": shard, "index": index, "cause": error.cause, "detail": str(error)})

    def check(self, samples_seen: int) -> None:
        """Raise above the set share of the samples seen, of a thousand at least.

        Raises:
            TooManyBadSamples: with counts and the first ten.
        """
        allowed = self.max_fraction * max(samples_seen, _SMALLEST_COUNT_FOR_A_SHARE)
        if self.total <= allowed:
            return
        first = "; ".join(f"{row['shard']} #{row['index']} {row['detail']}" for row in self.listed[:10])
        raise TooManyBadSamples(
            f"{self.total} of {samples_seen} samples of {self.url} cannot be used {self.counts}, more than "
            f"--data.max-bad-fraction {self.max_fraction} allows: {first}"
        )


def check_samples(
    data: memoryview, offsets: np.ndarray, checksums: np.ndarray, first: int
) -> Iterator[memoryview | BadSample]:
    """Split bytes into samples; yield a `BadSample` where the checksum differs.

    Args:
        data: begins where the first sample does.
        offsets: (n + 1,), where samples begin and the last one ends, within the shard.
        checksums: (n,), crc32.
        first: number of the first sample in its shard.
    """
    ends = (offsets - offsets[0]).tolist()
    for row, expected in enumerate(checksums.tolist()):
        part = data[ends[row] : ends[row + 1]]
        good = zlib.crc32(part) == expected
        yield part if good else BadSample("checksum", f"bytes of sample {first + row} were changed")


class SplitReader:
    """Reader of the samples of one split; thread-safe.

    Args:
        manifest: the split.
        cache_directory: folder where whole shards are cached after their first use; empty reads ranges from storage.
        embeddings: cached embeddings of the split, added to each sample.
    """

    def __init__(
        self, manifest: Manifest, cache_directory: str = "", embeddings: SplitEmbeddings | None = None
    ) -> None:
        self.manifest, self._embeddings = manifest, embeddings
        self._cache = Path(cache_directory).expanduser() if cache_directory else None
        self._locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, extent: Extent) -> list[RawSample]:
        """Return the bytes of each sample of an extent; a `BadSample` where the checksum differs.

        Raises:
            ManifestError: if the shard is missing or is not as large as its manifest says.
        """
        manifest = self.manifest
        storage, name = self._cached(extent.shard) if self._cache else manifest.place_of(extent.shard)
        offsets, checksums = manifest.index_of(extent.shard)
        start, stop = int(offsets[extent.first]), int(offsets[extent.first + extent.count])
        try:
            data, size = storage.read_part(name, start, stop)
        except ObjectMissing:
            raise ManifestError(self.disagreement(extent.shard, "is missing")) from None
        self._compare_size(extent.shard, size)
        if len(data) != stop - start:
            raise ManifestError(self.disagreement(extent.shard, f"ends before byte {stop}"))
        rows = slice(extent.first, extent.first + extent.count)
        ends = offsets[rows.start : rows.stop + 1]
        parts = check_samples(memoryview(data), ends, checksums[rows], extent.first)
        if manifest.is_adopted(extent.shard):
            return list(slice_samples(parts, manifest.members_of(extent.shard)[rows], ends.tolist()))
        return list(parts)

    def load(self, extent: Extent) -> Iterator[tuple[int, Sample | BadSample]]:
        """Yield number and parsed sample for each sample of an extent."""
        for number, data in enumerate(self.read(extent), start=extent.first):
            if isinstance(data, BadSample):
                yield number, data
                continue
            try:
                yield number, self.parse(data, extent.shard, number)
            except BadSample as error:
                yield number, error

    def parse(self, data: memoryview | Sample, shard: int, index: int, *, copy: bool = True) -> Sample:
        """Parse the bytes of a sample as `read` returns them, and add its embeddings.

        Args:
            data: of the sample.
            shard, index: its place.
            copy: False leaves its parts as views of `data`, see `unpack_sample`.

        Raises:
            BadSample: if it cannot be parsed, or has no embeddings.
        """
        sample = data if isinstance(data, Sample) else unpack_sample(data, copy=copy)
        if sample is data and copy:
            sample = sample.copied()
        embeddings = self._embeddings
        return sample if embeddings is None else sample._replace(embeddings=embeddings.at(shard, index))

    def _compare_size(self, shard: int, size: int) -> None:
        expected = int(self.manifest.size_bytes[shard])
        if size != expected:
            raise ManifestError(self.disagreement(shard, f"has {size} bytes instead of {expected}"))

    def _cached(self, shard: int) -> tuple[FolderStorage, str]:
        assert self._cache is not None
        sha256 = self.manifest.sha256_of(shard)
        folder = FolderStorage(self._cache / sha256[:2] / sha256)
        with self._lock:
            lock = self._locks.setdefault(shard, threading.Lock())
        name = self.manifest.name_of(shard)
        with lock:
            target = folder.folder / name
            if not target.exists():
                self._fill_cache(shard, target)
        return folder, name

    def _fill_cache(self, shard: int, target: Path) -> None:
        storage, name = self.manifest.place_of(shard)
        try:
            self._compare_size(shard, storage.size(name))
        except ObjectMissing:
            raise ManifestError(self.disagreement(shard, "is missing")) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=target.parent)
        os.close(descriptor)
        try:
            storage.download(name, Path(partial))
            with open(partial, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.manifest.sha256_of(shard):
                    raise ManifestError(self.disagreement(shard, "has another sha256"))
            Path(partial).replace(target)
        finally:
            Path(partial).unlink(missing_ok=True)

    def disagreement(self, shard: int, what: str) -> str:
        """Return the error message about a shard that disagrees with the manifest."""
        return f"shard {self.manifest.url_of(shard)} {what}: it is not the one of {self.manifest.url}/manifest.json"


def iter_split(
    reader: SplitReader,
    decode: Callable[[Sample], Decoded],
    rejections: Rejections,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 4,
) -> Iterator[tuple[tuple[int, int], Decoded]]:
    """Yield ((shard, index), decoded sample) for a worker's share of a split, once each, in stored order.

    Samples that cannot be used are counted in `rejections` and left out.
    """
    manifest = reader.manifest
    first = len(manifest) * rank // world_size
    stop = len(manifest) * (rank + 1) // world_size

    def load(extent: Extent) -> list[tuple[tuple[int, int], Decoded]]:
        return list(_decode_all(reader, extent, decode, rejections))

    with ThreadPoolExecutor(num_threads) as pool:
        waiting = []
        for extent in extents_between(manifest, first, stop):
            waiting.append(pool.submit(load, extent))
            if len(waiting) > num_threads:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


def _decode_all(
    reader: SplitReader, extent: Extent, decode: Callable[[Sample], Decoded], rejections: Rejections
) -> Iterator[tuple[tuple[int, int], Decoded]]:
    for number, sample in reader.load(extent):
        try:
            if isinstance(sample, BadSample):
                raise sample
            yield (extent.shard, number), decode(sample)
        except BadSample as error:
            rejections.add(reader.manifest.label_of(extent.shard), number, error)


def extents_between(manifest: Manifest, first: int, stop: int) -> Iterator[Extent]:
    """Divide the samples first..stop of a split into extents of a few MB that stay within a shard."""
    mean_bytes = max(1, manifest.summary.size_bytes // max(1, len(manifest)))
    most = max(1, _EXTENT_BYTES // mean_bytes)
    shard = int(manifest.first_sample.searchsorted(first, side="right")) - 1
    while first < stop:
        end = min(stop, int(manifest.first_sample[shard + 1]))
        while first < end:
            count = min(most, end - first)
            yield Extent(shard, first - int(manifest.first_sample[shard]), count)
            first += count
        shard += 1
