"""Writer of a split: tars are built, hashed and uploaded, then the manifest of all of them is written.

A finished shard leaves a record below `parts/`, so that an interrupted writer resumes; the records are removed when
the manifest is written.
"""

import base64
import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from brewclip.data.manifest import INDEX_ENTRY, MANIFEST, Summary
from brewclip.data.manifest_writer import ShardRecord, write_manifest
from brewclip.data.schema import Sample, check_sample, pack_sample
from brewclip.data.storage import Storage, exists
from brewclip.errors import ObjectMissing

_PARTS = "parts/"
_END_OF_TAR = b"\0" * 1024


def shard_name(split: str, round_number: int, number: int) -> str:
    """Return the name of a shard: split, round and number, sortable."""
    return f"{split}-{round_number:02d}-{number:06d}.tar"


def write_shard(
    storage: Storage,
    name: str,
    round_number: int,
    samples: Iterable[Sample],
    notes: dict[str, Any] | None = None,
) -> ShardRecord | None:
    """Write samples as one shard, atomically, and save its record.

    Memory holds one sample at a time; the tar grows in a temporary file.

    Args:
        storage: folder of the split.
        name: file name of the tar.
        round_number: which caption of its image each sample is.
        samples: at least one, for there to be a shard.
        notes: stored in the record; may be filled while `samples` is consumed.

    Returns:
        The record, or None if there was no sample.

    Raises:
        ValueError: for a sample with a bad key or metadata, or a key that occurs twice.
    """
    ends, checksums, keys = [], [], set()
    sha256, size = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        for sample in samples:
            check_sample(sample)
            if sample.key in keys:
                raise ValueError(f"key {sample.key!r} comes twice in {name}")
            keys.add(sample.key)
            data = pack_sample(sample)
            size += len(data)
            ends.append(size)
            checksums.append(zlib.crc32(data))
            sha256.update(data)
            file.write(data)
        if not ends:
            return None
        file.write(_END_OF_TAR)
        file.flush()
        sha256.update(_END_OF_TAR)
        storage.upload(Path(file.name), name)
    index = np.zeros(len(ends), INDEX_ENTRY)
    index["end"], index["crc32"] = ends, checksums
    record = ShardRecord(name, round_number, len(ends), size + len(_END_OF_TAR), sha256.hexdigest(), index, notes or {})
    _save_record(storage, record)
    return record


def finished_shard(storage: Storage, name: str) -> ShardRecord | None:
    """Return the record of a shard that an earlier, interrupted writer finished, if it is still whole."""
    try:
        fields = json.loads(storage.read(_part_name(name)))
        if storage.size(name) != fields["size_bytes"]:
            return None
    except ObjectMissing:
        return None
    index = np.frombuffer(base64.b64decode(fields.pop("index")), INDEX_ENTRY)
    return ShardRecord(**fields, index=index)


def finish_split(storage: Storage, records: list[ShardRecord], **facts: Any) -> Summary:
    """Write the manifest over all shards of a split and remove the records of the parts.

    Raises:
        ValueError: if there is no shard.
    """
    if not records:
        raise ValueError(f"no sample to write at {storage.url}")
    summary = write_manifest(storage, records, **facts)
    for name in storage.list_names(_PARTS):
        storage.delete(name)
    return summary


def remove_stale_shards(storage: Storage, names: set[str]) -> None:
    """Remove the tars of a split that are not among the names: those of an earlier run with other settings."""
    for name in storage.list_names():
        if name.endswith(".tar") and "/" not in name and name not in names:
            storage.delete(name)


def is_finished(storage: Storage) -> bool:
    """Return whether the split has a manifest."""
    return exists(storage, MANIFEST)


def _part_name(shard: str) -> str:
    return f"{_PARTS}{shard}.json"


def _save_record(storage: Storage, record: ShardRecord) -> None:
    fields = asdict(record) | {"index": base64.b64encode(record.index.tobytes()).decode()}
    storage.write(_part_name(record.name), json.dumps(fields, sort_keys=True).encode())
