"""Checking a split as it is stored, byte for byte, and saying everything that is wrong with it."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.data.batches import open_picture
from brewclip.data.manifest import INDEX, MANIFEST, SHARDS, Manifest, ManifestError, open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, Sample, npy_to_array
from brewclip.data.storage import ObjectMissing, StorageError

_KNOWN_FILES = (MANIFEST, SHARDS, INDEX, "rejected.jsonl")
_END_OF_TAR_BYTES = 1024


def verify_split(url: str, *, num_threads: int = 4, progress: Callable[[int], None] = lambda count: None) -> list[str]:
    """Read a whole split and compare it with its manifest; decode every picture, recording and feature.

    Args:
        url: folder of the split.
        num_threads: shards checked at once; each is held in memory whole.
        progress: told how many samples were checked.

    Returns:
        One line for each thing that is wrong, in the order of the shards; empty if the split is as it was written.

    Raises:
        StorageError: if storage refuses or cannot be reached.
    """
    try:
        manifest = open_manifest(url)
    except ManifestError as error:
        return [str(error)]
    problems = list(_check_files(manifest))
    with ThreadPoolExecutor(num_threads) as pool:
        for shard, found in enumerate(pool.map(partial(_check_shard, manifest), range(len(manifest.num_samples)))):
            problems += found
            progress(int(manifest.num_samples[shard]))
    return problems


def _check_files(manifest: Manifest) -> Iterator[str]:
    """Compare the files of the folder, and what the manifest says about them, with the table of shards."""
    summary, storage = manifest.summary, manifest.storage
    names = {manifest.name_of(shard) for shard in range(len(manifest.num_samples))}
    for name in storage.list_names():
        if name not in names and name not in _KNOWN_FILES and not name.startswith(("parts/", "whisper-")):
            yield f"{manifest.url}/{name} does not belong to the split"
    counts = {
        "num_samples": int(manifest.num_samples.sum()),
        "num_shards": len(names),
        "size_bytes": int(manifest.size_bytes.sum()),
    }
    for field, count in counts.items():
        if asdict(summary)[field] != count:
            yield f"{manifest.url}/{MANIFEST} says {field} {asdict(summary)[field]}, its shards have {count}"
    try:
        index = storage.read(INDEX)
    except ObjectMissing as error:
        yield str(error)
        return
    if hashlib.sha256(index).hexdigest() != summary.index_sha256:
        yield f"{manifest.url}/{INDEX} is not the one that {MANIFEST} names"


def _check_shard(manifest: Manifest, shard: int) -> list[str]:
    name = f"{manifest.url}/{manifest.name_of(shard)}"
    try:
        data = manifest.storage.read(manifest.name_of(shard))
    except ObjectMissing:
        return [f"shard {name} is missing"]
    problems = []
    if len(data) != manifest.size_bytes[shard]:
        problems.append(f"shard {name} has {len(data)} bytes, its manifest says {manifest.size_bytes[shard]}")
    elif hashlib.sha256(data).hexdigest() != manifest.sha256_of(shard):
        problems.append(f"shard {name} has another sha256 than its manifest says")
    try:
        offsets, _ = manifest.index_of(shard)
    except (ManifestError, StorageError) as error:
        return [*problems, str(error)]
    if offsets[-1] + _END_OF_TAR_BYTES != manifest.size_bytes[shard]:
        problems.append(f"shard {name} has {manifest.size_bytes[shard]} bytes, its samples end at {offsets[-1]}")
    if problems and len(data) < offsets[-1]:
        return problems
    return problems + list(_check_samples(manifest, shard, name))


def _check_samples(manifest: Manifest, shard: int, name: str) -> Iterator[str]:
    keys = set()
    try:
        samples = list(SplitReader(manifest).load(Extent(shard, 0, int(manifest.num_samples[shard]))))
    except ManifestError:
        return  # its size is named already
    for number, sample in samples:
        try:
            if isinstance(sample, BadSample):
                raise sample
            if sample.key in keys:
                raise BadSample("key", f"{sample.key!r} comes twice")
            keys.add(sample.key)
            _decode(sample, manifest.summary.kind)
        except (BadSample, UndecodableAudio) as error:
            key = f" {sample.key!r}" if isinstance(sample, Sample) else ""
            yield f"shard {name}: sample {number}{key}: {error}"


def _decode(sample: Sample, kind: str) -> None:
    """Decode all that a sample holds.

    Raises:
        BadSample, UndecodableAudio: if something cannot be decoded, or is not there.
    """
    if sample.image is not None:
        open_picture(sample.image)
    if kind == "recordings":
        if sample.audio is None:
            raise BadSample("audio", "there is no recording")
        decode_audio(sample.audio)
    elif sample.features is None:
        raise BadSample("features", "there are none")
    else:
        npy_to_array(sample.features)
