"""Reader of the samples of a split by number: range requests at the manifest's offsets, every byte checked.

The size of a shard and the crc32 of each sample are compared with the manifest whenever they are read, so no
truncated, flipped or exchanged bytes pass for a sample.
"""

import contextlib
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from brewclip.data.adopted import slice_samples
from brewclip.data.embeddings import SplitEmbeddings
from brewclip.data.manifest import Manifest
from brewclip.data.order import Extent
from brewclip.data.schema import BadSample, Sample, unpack_sample
from brewclip.data.shard_cache import ShardCache
from brewclip.data.storage import Storage
from brewclip.errors import ManifestError, ObjectMissing, StorageError, TooManyBadSamples

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
        self._cache = ShardCache(manifest, Path(cache_directory)) if cache_directory else None

    def read(self, extent: Extent) -> list[RawSample]:
        """Return the bytes of each sample of an extent; a `BadSample` where the checksum differs.

        Raises:
            ManifestError: if the shard is missing or is not as large as its manifest says.
        """
        parts = self._read_copy(self._cache, extent) if self._cache is not None else None
        if parts is None:
            parts = self._read_from(*self.manifest.place_of(extent.shard), extent)
        if self.manifest.is_adopted(extent.shard):
            first, stop = extent.first, extent.first + extent.count
            ends = self.manifest.index_of(extent.shard)[0][first : stop + 1].tolist()
            return list(slice_samples(parts, self.manifest.members_of(extent.shard)[first:stop], ends))
        return list(parts)

    def _read_copy(self, cache: ShardCache, extent: Extent) -> list[memoryview | BadSample] | None:
        """Read an extent of a cached shard; None if its copy cannot be made, or was damaged and is removed."""
        copy = cache.copy_of(extent.shard)
        if copy is None:
            return None
        with contextlib.suppress(StorageError, ManifestError, OSError):
            parts = self._read_from(*copy, extent)
            if not any(isinstance(part, BadSample) for part in parts):
                return parts
        cache.remove(extent.shard)
        return None

    def _read_from(self, storage: Storage, name: str, extent: Extent) -> list[memoryview | BadSample]:
        manifest = self.manifest
        offsets, checksums = manifest.index_of(extent.shard)
        rows = slice(extent.first, extent.first + extent.count)
        ends = offsets[rows.start : rows.stop + 1]
        try:
            data, size = storage.read_part(name, int(ends[0]), int(ends[-1]))
        except ObjectMissing:
            raise manifest.disagreement(extent.shard, "is missing") from None
        manifest.check_size(extent.shard, size)
        if len(data) != ends[-1] - ends[0]:
            raise manifest.disagreement(extent.shard, f"ends before byte {ends[-1]}")
        return list(check_samples(memoryview(data), ends, checksums[rows], extent.first))

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
