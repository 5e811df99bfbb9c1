"""A manifest of a million shards and a billion samples: opened, ordered and read within seconds and one GB.

The files are real: a table written by the writer's own function, an index of 12 GB with holes in it (only the
entries that the chosen step needs are there), and the few tars that hold those samples.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brewclip.data.manifest import INDEX, INDEX_ENTRY, MANIFEST, SHARDS, Summary
from brewclip.data.manifest_writer import ShardRecord, shards_to_parquet
from brewclip.data.order import SampleOrder
from brewclip.data.schema import pack_sample
from tests.data.splits import make_sample

NUM_SHARDS = 1_000_000
SAMPLES_PER_SHARD = 1000
BATCH_SIZE = 64
STEP = 7_654_321
TARS_SIZE_BYTES = 50_000 * SAMPLES_PER_SHARD  # samples of 50 kB on average: blocks of 20 samples

READ = """
import json, os, sys, threading, time

import numpy, psutil, pyarrow.parquet  # what any reader of a split loads is no cost of its size
from brewclip.data.manifest import open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.stream import Stream

url, batch_size, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
process = psutil.Process()
before = process.memory_info().rss
seen = []

def watch():
    while True:  # ru_maxrss would tell the peak of the parent, too
        seen.append(process.memory_info().rss)
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
start = time.monotonic()
manifest = open_manifest(url)
order = SampleOrder(manifest, seed=1, global_batch_size=batch_size)
places = [order.locate(order.batch_positions(n)) for n in (0, step, 10**12)]
rejections = Rejections(manifest.url)
stream = Stream(SplitReader(manifest), order, lambda sample: sample.key, rejections)
first_step, keys = next(stream.iter_from(step))
print(json.dumps({
    "seconds": time.monotonic() - start,
    "grown_bytes": max([*seen, process.memory_info().rss]) - before,
    "step": first_step, "keys": keys, "num_samples": len(manifest), "rejected": rejections.total,
    "located": [len(set(zip(p.shard.tolist(), p.index.tolist()))) for p in places],
}), flush=True)
os._exit(0)  # the prefetched shuffle windows are not there to be read
"""


def write_table(folder: Path, index_crc32: dict[int, int]) -> None:
    """Write shards.parquet and manifest.json of a million shards."""
    empty = np.zeros(0, INDEX_ENTRY)
    records = [
        ShardRecord(name_of(n), 0, SAMPLES_PER_SHARD, TARS_SIZE_BYTES, hashlib.sha256(b"%d" % n).hexdigest(), empty)
        for n in range(NUM_SHARDS)
    ]
    checksums = [index_crc32.get(n, 0) for n in range(NUM_SHARDS)]
    table = shards_to_parquet(records, checksums)
    (folder / SHARDS).write_bytes(table)
    summary = Summary(
        corpus="test",
        split="train",
        kind="features",
        num_samples=NUM_SHARDS * SAMPLES_PER_SHARD,
        num_shards=NUM_SHARDS,
        num_rounds=1,
        num_images=NUM_SHARDS * SAMPLES_PER_SHARD,
        size_bytes=NUM_SHARDS * TARS_SIZE_BYTES,
        shards_sha256=hashlib.sha256(table).hexdigest(),
        index_sha256="0" * 64,
    )
    (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(summary)))


def name_of(shard: int) -> str:
    return f"train-00-{shard:06d}.tar"


def order_of_a_billion() -> SampleOrder:
    """The order that the reading process will find: from counts alone."""

    class Counts(SimpleNamespace):
        def __len__(self) -> int:
            return NUM_SHARDS * SAMPLES_PER_SHARD

    counts = Counts(
        url="file:///counts",
        rounds=np.zeros(NUM_SHARDS, int),
        first_sample=np.arange(NUM_SHARDS + 1, dtype=np.int64) * SAMPLES_PER_SHARD,
        summary=SimpleNamespace(size_bytes=NUM_SHARDS * TARS_SIZE_BYTES),
    )
    return SampleOrder(counts, seed=1, global_batch_size=BATCH_SIZE)


def write_shards_of_a_step(folder: Path, order: SampleOrder) -> dict[int, int]:
    """Write tars and index entries for a step and the next three; return the crc32 of the index of each tar."""
    positions = np.concatenate([order.batch_positions(STEP + ahead) for ahead in range(4)])
    spans = {(span.lane, span.number): span for span in map(order.shuffle_window_of, positions.tolist())}
    touched = {extent.shard for span in spans.values() for extent in span.extents}
    index_crc32 = {}
    with open(folder / INDEX, "wb") as index:
        index.truncate(NUM_SHARDS * SAMPLES_PER_SHARD * INDEX_ENTRY.itemsize)
        for shard in touched:
            entries = write_sparse_tar(folder / name_of(shard), shard).tobytes()
            index.seek(shard * len(entries))
            index.write(entries)
            index_crc32[shard] = zlib.crc32(entries)
    return index_crc32


def write_sparse_tar(path: Path, shard: int) -> np.ndarray:
    """Write a tar whose samples are tiny, padded by a hole to the size that the table tells; return its index."""
    data = pack_sample(make_sample(0, shard))
    with open(path, "wb") as file:
        file.write(data * SAMPLES_PER_SHARD)
        file.truncate(TARS_SIZE_BYTES)
    entries = np.zeros(SAMPLES_PER_SHARD, INDEX_ENTRY)
    entries["end"] = len(data) * np.arange(1, SAMPLES_PER_SHARD + 1)
    entries["crc32"] = zlib.crc32(data)
    return entries


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_billion_samples_are_opened_ordered_and_read(tmp_path):
    order = order_of_a_billion()
    write_table(tmp_path, write_shards_of_a_step(tmp_path, order))
    command = [sys.executable, "-c", READ, tmp_path.as_uri(), str(BATCH_SIZE), str(STEP)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    place = order.locate(order.batch_positions(STEP))
    print(f"{found['seconds']:.1f} s, {found['grown_bytes'] / 1e6:.0f} MB")
    assert found["step"] == STEP
    assert found["keys"] == [f"image{shard}-0" for shard in place.shard]
    assert found["located"] == [BATCH_SIZE] * 3
    assert found["num_samples"] == 1_000_000_000
    assert found["rejected"] == 0
    assert found["grown_bytes"] < 1e9
    assert found["seconds"] < 60
