"""Benchmark the training stream against `webdataset.WebDataset`: same shards, same S3 server, one process.

    python jobs/benchmark.py stream
    python jobs/benchmark.py stream --sizes large --webdataset-workers 2 --json stream.json

Both shuffle: the stream over the whole round, WebDataset the order of its shards (without a sample buffer, which would
cost it time). The stream caches what it read as far as --memory-bytes allows, as in training; WebDataset reads each
epoch again. WebDataset reads through boto3 and a buffer, the stream by ranges with a checksum for each sample.
"""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
from PIL import Image

from brewclip.benchmarks.measure import BenchmarkOptions, Comparison, compare_in_turn, environment_set
from brewclip.benchmarks.reading_peers import open_webdataset
from brewclip.benchmarks.samples import SIZES, build_stream, write_split
from brewclip.config.ranges import THREADS, Range
from brewclip.data.images import open_image
from brewclip.data.manifest import Manifest
from brewclip.data.schema import Sample, npy_to_array
from brewclip.data.stream import Stream
from brewclip.errors import UserError
from brewclip.local import S3Server

_SHARES = {"small": 1.0, "large": 1 / 8}  # of --num-samples
_TARGETS = {("small", "raw"): 5.0, ("large", "decoded"): 1.3}
_MIB = 2**20


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes and number of runs."""

    sizes: tuple[str, ...] = ("small", "large")
    """Samples: `small` (3 kB: tar handling dominates), `large` (90 kB, as after extraction: bytes and decoding)."""
    num_samples: Annotated[int, Range(1, 10**8)] = 12_000
    """Samples of the small split, enough to average over the start; the large one has an eighth."""
    samples_per_shard: Annotated[int, Range(1, 10**6)] = 500
    """Samples per shard."""
    num_pairs: Annotated[int, Range(1, 1000)] = 3
    """Measured runs of each side."""
    num_epochs: Annotated[int, Range(1, 1000)] = 2
    """Epochs per run; each run starts with an empty cache."""
    global_batch_size: Annotated[int, Range(1, 2**20)] = 128
    """Samples per step of the stream."""
    num_threads: Annotated[int, THREADS] = 2
    """Decoding threads of the stream."""
    memory_bytes: Annotated[int, Range(2**20, 2**40)] = 512 * 2**20
    """Bound of the stream's raw bytes; below the split's size it reads shuffle windows instead of the split once."""
    webdataset_workers: Annotated[int, Range(0, 256)] = 0
    """Processes of WebDataset's loader; 0 reads in this process, as the stream does."""
    memory_epochs: Annotated[int, Range(0, 10_000)] = 10
    """Epochs over the small split after which memory is compared with that after two; 0 skips it."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    comparisons: list[Comparison] = []
    memory: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="brewclip-benchmark-") as folder,
        S3Server(Path(folder) / "objects", Path(folder)) as server,
        environment_set(server.environment()),
    ):
        bucket = server.create_bucket("benchmark")
        for name in options.sizes:
            count = int(options.num_samples * _SHARES[name])
            manifest = write_split(f"{bucket}/{name}", SIZES[name], count, options.samples_per_shard)
            comparisons += _compare(name, manifest, options)
        if options.memory_epochs:
            manifest = write_split(f"{bucket}/memory", SIZES["small"], options.num_samples, options.samples_per_shard)
            memory = _measure_memory(manifest, options)
            print(_memory_line(memory), flush=True)
    return {"comparisons": [comparison.record() for comparison in comparisons], "memory": memory}


def _check(options: Options) -> None:
    unknown = set(options.sizes) - set(_SHARES)
    if unknown:
        raise UserError(f"--sizes has {sorted(unknown)}: allowed are {', '.join(_SHARES)}")
    least = 3 * max(options.global_batch_size, options.samples_per_shard)
    if options.num_samples < least:
        raise UserError(f"--num-samples {options.num_samples} is too small: at least {least} with these batches")
    if options.memory_epochs and options.memory_epochs < 3:
        raise UserError(f"--memory-epochs {options.memory_epochs} compares nothing: 0, or 3 and more")


# ------------------------------------------------------------------ the two sides


def _compare(name: str, manifest: Manifest, options: Options) -> list[Comparison]:
    """Compare raw and decoded reading of one split."""
    found = []
    for kind, decode in (("raw", _keep), ("decoded", _decode)):
        kilobytes = manifest.summary.size_bytes / len(manifest) / 1000
        found.append(
            compare_in_turn(
                f"{name} samples of {kilobytes:.0f} kB, {kind}, against WebDataset",
                functools.partial(_rate_of_stream, manifest, decode, options),
                functools.partial(_rate_of_webdataset, manifest, kind == "decoded", options),
                num_pairs=options.num_pairs,
                unit="samples/s",
                target=_TARGETS.get((name, kind), 0.0),
            )
        )
    return found


def _keep(sample: Sample) -> Sample:
    return sample


def _decode(sample: Sample) -> tuple[Image.Image, np.ndarray, Any]:
    assert sample.features is not None
    return open_image(sample.image), npy_to_array(sample.features), sample.metadata


def _build_stream(manifest: Manifest, decode: Callable[[Sample], Any], options: Options) -> Stream[Any]:
    return build_stream(
        manifest,
        decode,
        options.global_batch_size,
        memory_bytes=options.memory_bytes,
        num_threads=options.num_threads,
    )


def _rate_of_stream(manifest: Manifest, decode: Callable[[Sample], Any], options: Options) -> float:
    """Return the samples per second of the stream's first epochs."""
    start = time.perf_counter()
    steps = options.num_epochs * len(manifest) // options.global_batch_size
    batches = itertools.islice(_build_stream(manifest, decode, options).iter_from(0), steps)
    count = sum(len(batch) for _, batch in batches)
    assert count == steps * options.global_batch_size
    return count / (time.perf_counter() - start)


def _rate_of_webdataset(manifest: Manifest, decoded: bool, options: Options) -> float:
    """Return the samples per second of WebDataset over the same number of epochs."""
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    samples = open_webdataset(manifest)
    if decoded:
        samples = samples.decode("pil")
    if options.webdataset_workers:
        batches = samples.batched(options.global_batch_size, collation_fn=None)
        samples = DataLoader(batches, batch_size=None, num_workers=options.webdataset_workers)
    count = 0
    for _ in range(options.num_epochs):
        count += sum(len(batch) if options.webdataset_workers else 1 for batch in samples)
    assert count == options.num_epochs * len(manifest)
    return count / (time.perf_counter() - start)


# ------------------------------------------------------------------ memory


def _measure_memory(manifest: Manifest, options: Options) -> dict[str, float]:
    """Return the resident memory after two and after all epochs of one stream, in bytes."""
    process, resident = psutil.Process(), {}
    stream = _build_stream(manifest, _decode, options)
    for step, _ in stream.iter_from(0):
        epochs = stream.order.epoch_of(step + 1)
        if "after_two_epochs_bytes" not in resident and epochs >= 2:
            resident["after_two_epochs_bytes"] = process.memory_info().rss
        if epochs >= options.memory_epochs:
            break
    resident["after_all_epochs_bytes"] = process.memory_info().rss
    return resident | {"epochs": options.memory_epochs, "stream_peak_bytes": stream.peak_bytes}


def _memory_line(memory: dict[str, float]) -> str:
    early, late = memory["after_two_epochs_bytes"] / _MIB, memory["after_all_epochs_bytes"] / _MIB
    return (
        f"memory: {early:.1f} MiB after 2 epochs, {late:.1f} MiB after {memory['epochs']:.0f} ({late - early:+.1f} MiB)"
    )
