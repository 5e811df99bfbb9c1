"""Benchmark the training stream against other loaders of shards, and over a slow link to the object store.

    python jobs/benchmark.py reading
    python jobs/benchmark.py reading --latency-seconds 0.1 --megabytes-per-second 50

First, an epoch of features is read from a local S3 server and decoded, by processor time of the reading processes: by
the stream, by torchdata's StatefulDataLoader over WebDataset in this process, and by Ray Data's `read_webdataset` in
--num-ray-tasks tasks. All use the stream's decoders, and nothing is cached. Only the stream shuffles samples.

Then samples of the size of Flickr8k's are read through a link with latency and limited bandwidth (the paper's
batch), by wall time from the start: by the stream, and by WebDataset in this process and in --num-threads loader
processes. Last, a step that takes as long as one of ViT-L-14 on a GPU (or --pairs-per-second) is fed through that
link, epoch after epoch; what it waits for batches after the first is compared with its time.

mosaicml-streaming 0.13 is not compared: it needs numpy below 2.2 and transformers below 5.
"""

import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil

from brewclip.benchmarks.gpu_scaling import GPU, PAPER
from brewclip.benchmarks.measure import (
    BenchmarkOptions,
    Comparison,
    Limit,
    Peer,
    compare_with_peers,
    environment_set,
    print_limit,
)
from brewclip.benchmarks.reading_peers import iter_ray_data, iter_stateful_loader, iter_webdataset
from brewclip.benchmarks.samples import SIZES, build_stream, decode_parts, decode_sample, write_split
from brewclip.benchmarks.slow_link import SlowLink
from brewclip.benchmarks.traffic import step_time
from brewclip.config.extras import check_installed
from brewclip.config.ranges import THREADS, Range
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.errors import UserError
from brewclip.local import S3Server

_LEAST_RATIO, _LEAST_SLOW_RATIO = 1.0, 1.0
_MOST_WAITING = 0.03
_RAY_PROCESSES = ("raylet", "ray::")

Batches = Callable[[], Iterator[Any]]
"""Starts to read, and yields batches."""


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes, the slow link, and number of runs."""

    num_samples: Annotated[int, Range(1, 10**8)] = 1536
    """Samples of 96 kB of the split that is read without a link."""
    num_slow_samples: Annotated[int, Range(1, 10**8)] = 3072
    """Samples of 230 kB of the split behind the link: more than --memory-bytes, as a corpus is."""
    samples_per_shard: Annotated[int, Range(1, 10**6)] = 256
    """Samples per shard."""
    batch_size: Annotated[int, Range(1, 2**20)] = 32
    """Samples of a batch; the paper has 32."""
    num_slow_steps: Annotated[int, Range(2, 10**6)] = 80
    """Batches of an epoch that are read through the link."""
    num_fed_steps: Annotated[int, Range(2, 10**6)] = 200
    """Steps that are fed through the link: several turns of the stream's shuffle windows."""
    latency_seconds: Annotated[float, Range(0, 10)] = 0.03
    """Latency of a request over the link."""
    megabytes_per_second: Annotated[float, Range(0.001, 10**6)] = 100.0
    """Bandwidth of the link."""
    pairs_per_second: Annotated[float, Range(0, 10**9)] = 0.0
    """Pairs per second of the step that is fed; 0: those of the paper's model on a GPU, as docs/scaling.md computes."""
    num_threads: Annotated[int, THREADS] = 2
    """Decoding threads of the stream, and loader processes of WebDataset behind the link."""
    memory_bytes: Annotated[int, Range(2**20, 2**40)] = 512 * 2**20
    """Bound of the stream's raw bytes."""
    num_ray_tasks: Annotated[int, Range(0, 256)] = 1
    """Tasks of Ray Data that read at the same time; 0 leaves it out."""
    num_pairs: Annotated[int, Range(1, 1000)] = 2
    """Measured runs of each side."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid, or a peer is not installed.
    """
    _check(options)
    with (
        tempfile.TemporaryDirectory(prefix="brewclip-benchmark-") as folder,
        S3Server(Path(folder) / "objects", Path(folder)) as server,
        environment_set(server.environment()),
    ):
        bucket = server.create_bucket("benchmark")
        near = write_split(f"{bucket}/near", SIZES["large"], options.num_samples, options.samples_per_shard)
        comparisons = _compare_loaders(near, options)
        write_split(f"{bucket}/far", SIZES["paper"], options.num_slow_samples, options.samples_per_shard)
        with (
            SlowLink(server.port, options.latency_seconds, 1e6 * options.megabytes_per_second) as link,
            environment_set({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{link.port}"}),
        ):
            far = open_manifest(f"{bucket}/far")
            comparisons += _compare_over_link(far, options)
            limits = _feed_a_step(far, options)
    return {
        "comparisons": [comparison.record() for comparison in comparisons],
        "limits": [limit.record() for limit in limits],
    }


def _check(options: Options) -> None:
    for name, count in (("--num-samples", options.num_samples), ("--num-slow-samples", options.num_slow_samples)):
        least = 2 * max(options.batch_size, options.samples_per_shard)
        if count < least:
            raise UserError(f"{name} {count} is too small: at least {least} with these batches and shards")
    if options.num_slow_steps * options.batch_size > options.num_slow_samples:
        most = options.num_slow_samples // options.batch_size
        raise UserError(f"--num-slow-steps {options.num_slow_steps} is more than an epoch has: at most {most}")
    check_installed("torchdata", "the comparison with StatefulDataLoader")


# ------------------------------------------------------------------ loaders, by processor time


def _compare_loaders(manifest: Manifest, options: Options) -> list[Comparison]:
    """Compare an epoch of the stream with an epoch of each peer."""
    count = len(manifest) // options.batch_size
    ours = functools.partial(_iter_stream, manifest, options, count)
    loader = functools.partial(iter_stateful_loader, manifest, decode_parts, options.batch_size)
    peers = [Peer("StatefulDataLoader over WebDataset", lambda: _rate(loader, time.process_time), _LEAST_RATIO)]
    if options.num_ray_tasks:
        from brewclip.cluster import connect

        connect()
        on_ray = functools.partial(iter_ray_data, manifest, decode_parts, options.batch_size, options.num_ray_tasks)
        peers.append(Peer("Ray Data's read_webdataset", lambda: _rate(on_ray, busy_seconds_with_ray), _LEAST_RATIO))
    kilobytes = manifest.summary.size_bytes / len(manifest) / 1000
    comparisons = compare_with_peers(
        f"an epoch of samples of {kilobytes:.0f} kB, decoded",
        lambda: _rate(ours, time.process_time),
        peers,
        num_rounds=options.num_pairs,
        unit="samples/CPU-s",
    )
    return _printed(comparisons)


def _iter_stream(manifest: Manifest, options: Options, num_steps: int) -> Iterator[list[Any]]:
    stream = build_stream(
        manifest,
        decode_sample,
        options.batch_size,
        memory_bytes=options.memory_bytes,
        num_threads=options.num_threads,
    )
    for _, batch in itertools.islice(stream.iter_from(0), num_steps):
        yield batch


def busy_seconds_with_ray() -> float:
    """Return the processor time of this process, of Ray's workers on this machine, and of what holds their objects."""
    seconds = time.process_time()
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
            if words and Path(words[0]).name.startswith(_RAY_PROCESSES):
                times = process.cpu_times()  # those of children: workers that have ended
                seconds += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return seconds


def _rate(batches: Batches, clock: Callable[[], float], num_steps: int | None = None) -> float:
    """Return the samples per second of a number of batches, or of all."""
    start = clock()
    iterator = batches()  # kept until the time is taken: loader processes take a while to end
    count = sum(map(_size, itertools.islice(iterator, num_steps)))
    return count / (clock() - start)


def _size(batch: Any) -> int:
    """Return the samples of a batch: a list of them, or arrays by suffix."""
    return len(batch["npy"]) if isinstance(batch, dict) else len(batch)


def _printed(comparisons: list[Comparison]) -> list[Comparison]:
    for comparison in comparisons:
        print(comparison.line(), flush=True)
    return comparisons


# ------------------------------------------------------------------ over the slow link, by wall time


def _compare_over_link(manifest: Manifest, options: Options) -> list[Comparison]:
    """Compare the stream with WebDataset over the link, from the start to the last batch."""
    ours = functools.partial(_iter_stream, manifest, options, options.num_slow_steps)
    rates = {
        name: functools.partial(_rate, batches, time.perf_counter, options.num_slow_steps)
        for name, batches in _peers_over_link(manifest, options).items()
    }
    kilobytes = manifest.summary.size_bytes / len(manifest) / 1000
    comparisons = compare_with_peers(
        f"samples of {kilobytes:.0f} kB over a link of {1000 * options.latency_seconds:.0f} ms and "
        f"{options.megabytes_per_second:g} MB/s",
        functools.partial(_rate, ours, time.perf_counter, options.num_slow_steps),
        [Peer(name, rate, _LEAST_SLOW_RATIO) for name, rate in rates.items()],
        num_rounds=options.num_pairs,
        unit="samples/s",
    )
    return _printed(comparisons)


def _peers_over_link(manifest: Manifest, options: Options) -> dict[str, Batches]:
    """Return an epoch of each peer by name."""
    loader = functools.partial(
        iter_stateful_loader, manifest, decode_parts, options.batch_size, num_workers=options.num_threads
    )
    return {
        "WebDataset in one thread": functools.partial(iter_webdataset, manifest, decode_parts, options.batch_size),
        f"WebDataset in {options.num_threads} processes": loader,
    }


def _feed_a_step(manifest: Manifest, options: Options) -> list[Limit]:
    """Return the share of time that a step waits for its batches, and the time to the first one, of every loader."""
    seconds = options.batch_size / options.pairs_per_second if options.pairs_per_second else paper_step_seconds(options)
    ours: Batches = functools.partial(_iter_stream, manifest, options, options.num_fed_steps)  # over epochs by itself
    limits = []
    for name, batches in {"the stream": ours, **_peers_over_link(manifest, options)}.items():
        count = options.num_pairs if batches is ours else 1  # peers have no target here
        runs = [feed(_epochs(batches), seconds, options.num_fed_steps) for _ in range(count)]
        waiting, firsts = tuple(share for share, _ in runs), tuple(first for _, first in runs)
        pairs = options.batch_size / seconds
        most = _MOST_WAITING if batches is ours else 0.0
        title = f"share of time that a step of {pairs:.0f} pairs/s waits for {name} over the link"
        limits += [Limit(title, waiting, "", most), Limit(f"first batch of {name} over the link", firsts, "s")]
    return [print_limit(limit) for limit in limits]


def _epochs(batches: Batches) -> Iterator[Any]:
    """Yield epoch after epoch."""
    while True:
        yield from batches()


def paper_step_seconds(options: Options) -> float:
    """Return the time of a step of the paper's model with Flickr8k on one GPU."""
    return step_time(PAPER[0], GPU, 1, options.batch_size).seconds


def feed(batches: Iterator[Any], step_seconds: float, num_steps: int) -> tuple[float, float]:
    """Take batches as a training step does that leaves the processor free.

    Returns:
        The share of time spent waiting for batches behind the first, and the seconds to the first.
    """
    waited = []
    for _ in range(num_steps):
        start = time.perf_counter()
        next(batches)
        waited.append(time.perf_counter() - start)
        time.sleep(step_seconds)
    total = sum(waited[1:])
    return total / (total + (num_steps - 1) * step_seconds), waited[0]
