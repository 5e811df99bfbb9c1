"""Benchmark the training stream against `webdataset.WebDataset`: same shards, same S3 server, one process.

    python jobs/benchmark.py stream
    python jobs/benchmark.py stream --sizes large --webdataset-workers 2 --json stream.json

Both shuffle: the stream over the whole round, WebDataset the order of its shards (without a sample buffer, which would
cost it time). The stream caches what it read as far as --memory-bytes allows, as in training; WebDataset reads each
epoch again. WebDataset reads through boto3 and a buffer, the stream by ranges with a checksum for each sample.
"""

import functools
import io
import itertools
import os
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
from brewclip.config.ranges import THREADS, Range
from brewclip.data.images import open_image
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import Sample, array_to_npy, npy_to_array
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.data.stream import Stream
from brewclip.errors import UserError
from brewclip.local import S3Server

_BUFFER_BYTES = 2**20
_TARGETS = {("small", "raw"): 5.0, ("large", "decoded"): 1.3}
_MIB = 2**20


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes and number of runs."""

    sizes: tuple[str, ...] = ("small", "large")
    """Samples: `small` (3 kB: tar handling dominates), `large` (90 kB, as after extraction: bytes and decoding)."""
    num_samples: Annotated[int, Range(1, 10**8)] = 18_000
    """Samples of the small split, enough to average over the start; the large one has a twelfth."""
    samples_per_shard: Annotated[int, Range(1, 10**6)] = 500
    """Samples per shard."""
    num_pairs: Annotated[int, Range(1, 1000)] = 4
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
    memory_epochs: Annotated[int, Range(0, 10_000)] = 20
    """Epochs over the small split after which memory is compared with that after two; 0 skips it."""


@dataclass(frozen=True)
class _Size:
    """Side of the image in pixels, frames and width of the features, fraction of `num_samples`."""

    side_pixels: int
    num_frames: int
    feature_dim: int
    share: float


_SIZES = {"small": _Size(32, 8, 64, 1.0), "large": _Size(224, 100, 384, 1 / 12)}


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
            manifest = _write_split(f"{bucket}/{name}", _SIZES[name], options)
            comparisons += _compare(name, manifest, options)
        if options.memory_epochs:
            manifest = _write_split(f"{bucket}/memory", _SIZES["small"], options)
            memory = _measure_memory(manifest, options)
            print(_memory_line(memory), flush=True)
    return {"comparisons": [comparison.record() for comparison in comparisons], "memory": memory}


def _check(options: Options) -> None:
    unknown = set(options.sizes) - set(_SIZES)
    if unknown:
        raise UserError(f"--sizes has {sorted(unknown)}: allowed are {', '.join(_SIZES)}")
    least = 3 * max(options.global_batch_size, options.samples_per_shard)
    if options.num_samples < least:
        raise UserError(f"--num-samples {options.num_samples} is too small: at least {least} with these batches")
    if options.memory_epochs and options.memory_epochs < 3:
        raise UserError(f"--memory-epochs {options.memory_epochs} compares nothing: 0, or 3 and more")


# ------------------------------------------------------------------ the split


def _write_split(url: str, size: _Size, options: Options) -> Manifest:
    """Write a split of features; images are noise over a gradient, which decode like photographs."""
    storage, count = open_storage(url), int(options.num_samples * size.share)
    rng = np.random.default_rng(0)
    made = [_make_parts(rng, size) for _ in range(64)]  # a new image for each sample would take minutes
    records = []
    for number, first in enumerate(range(0, count, options.samples_per_shard)):
        numbers = range(first, min(first + options.samples_per_shard, count))
        samples = (Sample(f"{n:08d}-0", _metadata(n), *made[n % len(made)]) for n in numbers)
        record = write_shard(storage, shard_name("train", 0, number), 0, samples)
        assert record is not None
        records.append(record)
    finish_split(storage, records, corpus="benchmark", split="train", kind="features", num_images=count)
    return open_manifest(url)


def _make_parts(rng: np.random.Generator, size: _Size) -> tuple[bytes, None, bytes]:
    """Return an image, no recording, and features."""
    ramp = np.linspace(0, 200, size.side_pixels)[:, None, None]
    noise = rng.integers(0, 55, (size.side_pixels // 4, size.side_pixels // 4, 3)).repeat(4, 0).repeat(4, 1)
    image = io.BytesIO()
    Image.fromarray((ramp + noise).astype(np.uint8)).save(image, "JPEG", quality=90)
    features = rng.standard_normal((size.num_frames, size.feature_dim)).astype(np.float16)
    return image.getvalue(), None, array_to_npy(features)


def _metadata(number: int) -> dict[str, Any]:
    fields = {"image_id": f"{number:08d}", "caption_id": f"{number:08d}-0", "split": "train", "duration_seconds": 2.0}
    return fields | {"transcript": "a red circle above two small green squares", "avg_logprob": -0.25}


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
    order = SampleOrder(manifest, seed=0, global_batch_size=options.global_batch_size)
    rejections = Rejections(manifest.url, max_fraction=0.0)
    return Stream(
        SplitReader(manifest), order, decode, rejections, memory_bytes=options.memory_bytes,
        num_threads=options.num_threads,
    )  # fmt: skip


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
    import webdataset
    from torch.utils.data import DataLoader

    webdataset.gopen_schemes["s3"] = _open_s3
    urls = [f"{manifest.url}/{manifest.name_of(shard)}" for shard in range(len(manifest.num_samples))]
    start = time.perf_counter()
    samples: Any = webdataset.WebDataset(urls, shardshuffle=len(urls))
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


def _open_s3(url: str, mode: str = "rb", bufsize: int = _BUFFER_BYTES, **options: Any) -> Any:
    """Open an object for WebDataset, which has no opener for s3://."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return io.BufferedReader(_s3_client(os.getpid()).get_object(Bucket=bucket, Key=key)["Body"], _BUFFER_BYTES)


@functools.cache
def _s3_client(process_id: int) -> Any:
    """Return one client per process: it must not be shared across a fork."""
    import boto3

    return boto3.client("s3")


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
