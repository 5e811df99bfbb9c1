"""Verification of a stored split, byte for byte, with a report of every problem."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from brewclip.audio import UndecodableAudio, decode_audio_with_damage
from brewclip.data.adopted import slice_samples
from brewclip.data.images import open_image
from brewclip.data.manifest import INDEX, MANIFEST, SHARDS, Manifest, open_manifest
from brewclip.data.reader import RawSample, check_samples
from brewclip.data.schema import BadSample, Sample, read_features, unpack_sample
from brewclip.errors import ManifestError, ObjectMissing, StorageError

_KNOWN_FILES = (MANIFEST, SHARDS, INDEX, "rejected.jsonl", "images.parquet", "identical_images.jsonl")
_END_OF_TAR_BYTES = 1024
_PART_BYTES = 64 * 2**20
_ROUNDING_SECONDS = 0.011  # of what metadata say is missing


def verify_split(url: str, *, num_threads: int = 4, progress: Callable[[int], None] = lambda count: None) -> list[str]:
    """Read a whole split and compare it with its manifest; decode every image, recording and feature.

    Args:
        url: folder of the split.
        num_threads: shards checked at once; of each, 64 MiB are held in memory.
        progress: called with the number of samples checked.

    Returns:
        One line for each problem, in the order of the shards; empty if the split is as it was written.

    Raises:
        StorageError: if storage refuses or cannot be reached.
    """
    try:
        manifest = open_manifest(url)
    except ManifestError as error:
        return [str(error)]
    problems = list(_check_files(manifest))
    hashes, widths = [], []
    for report in _iter_reports(manifest, num_threads):
        problems += report.problems
        hashes.append(report.key_hashes)
        widths.append(report.widths)
        progress(report.num_samples)
    places = [first + np.arange(len(some)) for first, some in zip(manifest.first_sample, hashes, strict=False)]
    problems += _find_repeated_keys(manifest, np.concatenate(places), np.concatenate(hashes))
    problems += _find_other_widths(manifest, np.concatenate(places), np.concatenate(widths))
    return [" ".join(problem.splitlines()) for problem in problems]


@dataclass(frozen=True)
class _ShardReport:
    """Problems of a shard, and facts of each sample; zeros for one that cannot be read.

    Attributes:
        problems: a line each.
        key_hashes: (n,) uint64, bits of the hash of each key; n is 0 where the shard has no index.
        widths: (n,) int64, of features.
        num_samples: that the manifest gives to the shard.
    """

    problems: list[str]
    key_hashes: np.ndarray
    widths: np.ndarray
    num_samples: int


def _iter_reports(manifest: Manifest, num_threads: int) -> Iterator[_ShardReport]:
    """Check shard after shard in threads, a few ahead: a million tasks at once would be a GB of them."""
    waiting: deque[Future[_ShardReport]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for shard in range(len(manifest.num_samples)):
            waiting.append(pool.submit(_check_shard, manifest, shard))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _find_repeated_keys(manifest: Manifest, places: np.ndarray, hashes: np.ndarray) -> Iterator[str]:
    """Name samples that have the key of another, in the same shard or not."""
    order = np.lexsort((places, hashes))
    same = (hashes[order[1:]] == hashes[order[:-1]]) & (hashes[order[1:]] != 0)
    for row in np.flatnonzero(same):
        first, second = (_describe_place(manifest, int(places[one])) for one in order[row : row + 2])
        yield f"shard {second} has the key of {first}"


def _find_other_widths(manifest: Manifest, places: np.ndarray, widths: np.ndarray) -> Iterator[str]:
    """Name samples whose features have another width than those of most."""
    found, counts = np.unique(widths[widths > 0], return_counts=True)
    if len(found) > 1:
        usual = int(found[counts.argmax()])
        for row in np.flatnonzero((widths > 0) & (widths != usual)):
            place = _describe_place(manifest, int(places[row]))
            yield f"shard {place}: features: a width of {widths[row]}, those of this split have {usual}"


def _describe_place(manifest: Manifest, place: int) -> str:
    """Return shard and number of the sample at a place of the split."""
    shard = int(manifest.first_sample.searchsorted(place, side="right")) - 1
    return f"{manifest.url_of(shard)}: sample {place - int(manifest.first_sample[shard])}"


def _check_files(manifest: Manifest) -> Iterator[str]:
    """Compare the files of the folder and the facts of the manifest with the table of shards."""
    names = {manifest.name_of(shard) for shard in range(len(manifest.num_samples))}
    for name in manifest.storage.list_names():
        if name not in names and name not in _KNOWN_FILES and not name.startswith(("parts/", "members/", "whisper-")):
            yield f"{manifest.url}/{name if name.isprintable() else repr(name)} does not belong to the split"
    try:
        if _hash_of_index(manifest) != manifest.summary.index_sha256:
            yield f"{manifest.url}/{INDEX} is not the one that {MANIFEST} names"
    except ObjectMissing as error:
        yield str(error)


def _hash_of_index(manifest: Manifest) -> str:
    """Return the sha256 of the index, read in parts: it has 12 bytes for each sample."""
    sha256, size = hashlib.sha256(), manifest.storage.size(INDEX)
    for start in range(0, size, _PART_BYTES):
        sha256.update(manifest.storage.read_range(INDEX, start, min(start + _PART_BYTES, size)))
    return sha256.hexdigest()


def _check_shard(manifest: Manifest, shard: int) -> _ShardReport:
    """Read a shard once and check it against its row of the table, its index, and the schema of samples."""
    name, count = manifest.name_of(shard), int(manifest.num_samples[shard])
    hashes, widths = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    problems: list[str] = []
    try:
        name = manifest.url_of(shard)
        offsets = manifest.index_of(shard)[0]
        hashes, widths = (
            np.zeros(count, np.uint64),
            np.zeros(count, np.int64),
        )  # not before the index bears out the count
        if not manifest.is_adopted(shard) and offsets[-1] + _END_OF_TAR_BYTES != manifest.size_bytes[shard]:
            problems.append(f"shard {name} has {manifest.size_bytes[shard]} bytes, its samples end at {offsets[-1]}")
        without_image = []
        for number, raw in enumerate(_iter_samples(manifest, shard, problems)):
            try:
                sample, widths[number] = _check_sample(raw, manifest.summary.kind)
            except BadSample as error:
                problems.append(f"shard {name}: sample {number}: {error}")
                continue
            hashes[number] = int.from_bytes(hashlib.blake2b(sample.key.encode(), digest_size=8).digest(), "little")
            if sample.image is None:
                without_image.append(f"shard {name}: sample {number}: image: {sample.key!r}: there is none")
    except ObjectMissing:
        return _ShardReport([f"shard {name} is missing"], hashes, widths, count)
    except (ManifestError, StorageError) as error:
        return _ShardReport([*problems, str(error)], hashes, widths, count)
    except OSError as error:
        return _ShardReport([*problems, f"shard {name} cannot be read: {error.strerror}"], hashes, widths, count)
    if len(without_image) < np.count_nonzero(hashes):  # else a corpus of recordings alone
        problems += without_image
    return _ShardReport(problems, hashes, widths, count)


def _iter_samples(manifest: Manifest, shard: int, problems: list[str]) -> Iterator[RawSample]:
    """Yield the samples of a shard, read in parts; at the end, append problems of the whole shard."""
    storage, name = manifest.place_of(shard)
    size, sha256 = storage.size(name), hashlib.sha256()
    offsets, checksums = manifest.index_of(shard)
    first = 0
    while first < len(checksums):
        stop = max(first + 1, int(offsets.searchsorted(offsets[first] + _PART_BYTES, side="right")) - 1)
        data = storage.read_range(name, int(offsets[first]), int(offsets[stop]))
        sha256.update(data)
        ends = offsets[first : stop + 1]
        parts = check_samples(memoryview(data), ends, checksums[first:stop], first)
        if manifest.is_adopted(shard):
            yield from slice_samples(parts, manifest.members_of(shard)[first:stop], ends.tolist())
        else:
            yield from parts
        first = stop
    for start in range(int(offsets[-1]), size, _PART_BYTES):
        sha256.update(storage.read_range(name, start, min(start + _PART_BYTES, size)))
    if size != manifest.size_bytes[shard]:
        problems.append(
            f"shard {manifest.url_of(shard)} has {size} bytes, its manifest says {manifest.size_bytes[shard]}"
        )
    elif sha256.hexdigest() != manifest.sha256_of(shard):
        problems.append(f"shard {manifest.url_of(shard)} has another sha256 than its manifest says")


def _check_sample(raw: RawSample, kind: str) -> tuple[Sample, int]:
    """Parse and decode a sample; return it and the width of its features, 0 if it has none.

    Raises:
        BadSample: if it cannot be used; of what could be parsed, with its key.
    """
    if isinstance(raw, BadSample):
        raise raw
    sample = raw.copied() if isinstance(raw, Sample) else unpack_sample(raw)
    try:
        return sample, _decode(sample, kind)
    except BadSample as error:
        raise BadSample(error.cause, f"{sample.key!r}: {error.detail}") from error
    except UndecodableAudio as error:
        raise BadSample("audio", f"{sample.key!r}: {error}") from error


def _decode(sample: Sample, kind: str) -> int:
    """Decode all that a sample holds; return the width of its features, 0 if it has none.

    Raises:
        BadSample, UndecodableAudio: if something cannot be decoded, or sound or features are not there.
    """
    if sample.image is not None:
        open_image(sample.image)
    if kind == "recordings":
        if sample.audio is None:
            raise BadSample("audio", "there is no recording")
        missing_seconds = decode_audio_with_damage(sample.audio).missing_seconds
        known = sample.metadata.get("missing_seconds")  # an adopted recording is left as it is
        known_seconds = float(known) if isinstance(known, int | float) and known > 0 else 0.0
        if missing_seconds > known_seconds + (_ROUNDING_SECONDS if known_seconds else 0.0):
            raise BadSample("audio", f"the recording breaks off {missing_seconds:.2f} s before its end")
        return 0
    if sample.features is None:
        raise BadSample("features", "there are none")
    return int(read_features(sample.features).shape[1])
