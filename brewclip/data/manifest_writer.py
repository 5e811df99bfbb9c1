"""Writer of a manifest: the table of shards, the index, and last manifest.json."""

import hashlib
import io
import json
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from brewclip.data.manifest import INDEX, MANIFEST, SHARDS, Summary
from brewclip.data.storage import Storage


@dataclass(frozen=True)
class ShardRecord:
    """Record of one finished shard.

    Attributes:
        name: file name of the tar.
        round: which caption of its image each sample is; 0-based.
        num_samples: samples in it.
        size_bytes: size of the tar.
        sha256: of the tar, hexadecimal.
        index: entries of `INDEX_ENTRY`, one for each sample.
        notes: state of the writer for resuming or finishing the split; not in the manifest.
        url: where an adopted tar is, relative to the folder of the split or absolute; empty for one inside it.
        members_crc32: of the list of an adopted tar's members.
    """

    name: str
    round: int
    num_samples: int
    size_bytes: int
    sha256: str
    index: np.ndarray = field(repr=False, compare=False)
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    url: str = ""
    members_crc32: int = 0


def write_manifest(storage: Storage, records: list[ShardRecord], **facts: Any) -> Summary:
    """Write index, table and, last, manifest.json over finished shards.

    Args:
        storage: folder of the split.
        records: one for each shard, in any order.
        **facts: the remaining fields of `Summary`: corpus, split, kind, num_images, details.
    """
    records = sorted(records, key=lambda record: (record.round, record.name))
    index = b"".join(record.index.tobytes() for record in records)
    shards = shards_to_parquet(records, [zlib.crc32(record.index.tobytes()) for record in records])
    summary = Summary(
        num_samples=sum(record.num_samples for record in records),
        num_shards=len(records),
        num_rounds=len({record.round for record in records}),
        size_bytes=sum(record.size_bytes for record in records),
        shards_sha256=hashlib.sha256(shards).hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
        **facts,
    )
    storage.write(INDEX, index)
    storage.write(SHARDS, shards)
    storage.write(MANIFEST, json.dumps(asdict(summary), indent=1, sort_keys=True).encode())
    return summary


def shards_to_parquet(records: list[ShardRecord], index_crc32: list[int]) -> bytes:
    """Return the table of shards, with the crc32 of the index of each, as the bytes of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "name": pa.array([record.name for record in records], pa.string()),
        "round": pa.array([record.round for record in records], pa.int32()),
        "num_samples": pa.array([record.num_samples for record in records], pa.int64()),
        "size_bytes": pa.array([record.size_bytes for record in records], pa.int64()),
        "sha256": pa.array([record.sha256 for record in records], pa.string()),
        "index_crc32": pa.array(index_crc32, pa.uint32()),
    }
    if any(record.url for record in records):
        columns["url"] = pa.array([record.url for record in records], pa.string())
        columns["members_crc32"] = pa.array([record.members_crc32 for record in records], pa.uint32())
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
