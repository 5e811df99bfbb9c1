"""Benchmark the search service against the plain way to serve the same models.

    python jobs/benchmark.py serve
    python jobs/benchmark.py serve --clients 1 4 16 --queries-per-client 4

Both answer spoken captions of --seconds each from zero-shot Whisper base and the scenes CLIP, over the same index, with
the same number of CPU threads; the plain way is `plain_server`. Clients send one query after the other, each a
recording of its own, since the service remembers what it has heard. Both run all the time, and are asked in turn.
"""

import functools
import io
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile

from brewclip.audio import SAMPLE_RATE_HZ
from brewclip.benchmarks.corpus import make_recordings
from brewclip.benchmarks.measure import BenchmarkOptions, Comparison, Limit, print_limit
from brewclip.config.ranges import THREADS, Range
from brewclip.errors import UserError
from brewclip.local.processes import SupervisedProcess, free_port, server_environment
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, world_seed

_LEAST_THROUGHPUT_RATIO, _LEAST_LATENCY_RATIO = 3.0, 2.0
_NOISE = 1e-4  # makes each recording another one, and is not heard
_START_SECONDS = 600.0
_SIDE_PIXELS = 96


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Load, and how it is served."""

    clients: tuple[Annotated[int, Range(1, 1000)], ...] = (1, 16)
    """Numbers of clients at once."""
    queries_per_client: Annotated[int, Range(1, 1000)] = 3
    """Queries of each client in a run."""
    seconds: Annotated[float, Range(0.5, 30)] = 3.5
    """Length of each query."""
    num_images: Annotated[int, Range(1, 10**6)] = 500
    """Images in the index."""
    num_threads: Annotated[int, THREADS] = 1
    """CPU threads of either server's models."""
    num_pairs: Annotated[int, Range(1, 100)] = 2
    """Measured runs of each side and number of clients."""
    ray: bool = True
    """Serve on Ray Serve, as `brewclip serve` does, or in one process without it."""


@dataclass(frozen=True)
class Run:
    """What the clients of a run saw: the latency of each query, and the wall time of all."""

    latencies_seconds: tuple[float, ...]
    wall_seconds: float

    @property
    def rate(self) -> float:
        """Queries per second."""
        return len(self.latencies_seconds) / self.wall_seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies in seconds."""
        return float(np.percentile(self.latencies_seconds, percent))


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if a server does not start.
    """
    bodies = make_bodies(options)
    with tempfile.TemporaryDirectory() as folder:
        index = _make_index(Path(folder), options.num_images)
        with _servers(options, index, Path(folder)) as (ours, theirs):
            runs = {count: _alternate(options, bodies, count, ours, theirs) for count in options.clients}
    comparisons, limits = [], []
    for count, (our_runs, their_runs) in runs.items():
        target = _LEAST_THROUGHPUT_RATIO if count == max(runs) and count > 1 else 0.0
        rates = tuple(one.rate for one in our_runs), tuple(one.rate for one in their_runs)
        name = f"{_clients(count)} with {options.seconds:g} s queries, against FastAPI, whisper.transcribe and NumPy"
        comparisons.append(Comparison(name, *rates, "queries/s", target))
        if count == 1:
            medians = [tuple(1 / one.percentile(50) for one in side) for side in (our_runs, their_runs)]
            title = "inverse of the median latency of one client"
            comparisons.append(Comparison(title, medians[0], medians[1], "1/s", _LEAST_LATENCY_RATIO))
        for side, side_runs in (("service", our_runs), ("plain way", their_runs)):
            for percent in (50, 95, 99):
                values = tuple(one.percentile(percent) for one in side_runs)
                limits.append(Limit(f"p{percent} of {_clients(count)}, {side}", values, "s"))
    for comparison in comparisons:
        print(comparison.line(), flush=True)
    return {
        "comparisons": [comparison.record() for comparison in comparisons],
        "limits": [print_limit(limit).record() for limit in limits],
    }


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count > 1)}"


def make_bodies(options: Options) -> list[bytes]:
    """Return as many spoken captions as a run has queries at most, as WAV files of the same length."""
    count = max(options.clients) * options.queries_per_client
    return [_body(one.waveform, options.seconds) for one in make_recordings(min(count, 64))]


def _body(waveform: np.ndarray, seconds: float, seed: int = 0) -> bytes:
    samples = np.zeros(round(seconds * SAMPLE_RATE_HZ))
    samples[: len(waveform)] = waveform[: len(samples)]
    samples += np.random.default_rng(seed).normal(0, _NOISE, len(samples))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _make_index(folder: Path, num_images: int) -> Path:
    from brewclip import load

    images = folder / "images"
    images.mkdir()
    for number in range(num_images):
        draw_scene(sample_scene(world_seed("scenes/benchmark"), number), _SIDE_PIXELS).save(images / f"{number}.png")
    load("zero_shot", clip="scenes").build_index([images], folder / "index")
    return folder / "index"


@contextmanager
def _servers(options: Options, index: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run both servers, and yield the URLs that take queries."""
    ports = free_port(), free_port()
    threads = str(options.num_threads)
    ours = ["-m", "brewclip", "serve", "--index", str(index), "--port", str(ports[0])]
    ours += ["--embedder.cpus-per-replica", threads, "--ray" if options.ray else "--no-ray"]
    theirs = ["-m", "brewclip.benchmarks.plain_server", str(index), str(ports[1]), threads]
    environment = server_environment({"OMP_NUM_THREADS": threads})
    processes = []
    try:
        for name, words in (("service", ours), ("plain", theirs)):
            log = folder / f"{name}.log"
            process = SupervisedProcess([sys.executable, *words], environment=environment, log_path=log)
            processes.append(process)
        for port, process in zip(ports, processes, strict=True):
            _wait_for(f"http://127.0.0.1:{port}/healthz", process)
        yield f"http://127.0.0.1:{ports[0]}/v1/search", f"http://127.0.0.1:{ports[1]}/search"
    finally:
        for process in processes:
            process.stop()


def _wait_for(url: str, process: SupervisedProcess) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.exit_code is None:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
    raise UserError(f"{url} does not answer: {process.last_lines()}")


def _alternate(
    options: Options, bodies: list[bytes], count: int, ours: str, theirs: str
) -> tuple[list[Run], list[Run]]:
    """Ask both servers in turn, with the order switched from pair to pair; one query of each client goes before."""
    sides: dict[str, list[Run]] = {ours: [], theirs: []}
    for pair in range(options.num_pairs + 1):
        for url in (ours, theirs) if pair % 2 == 0 else (theirs, ours):
            queries = options.queries_per_client if pair else 1
            measured = measure(functools.partial(_ask, url), bodies, count, queries, pair)
            if pair:
                sides[url].append(measured)
                print(f"{_clients(count)}, {url}: {measured.rate:.3g} queries/s", flush=True)
    return sides[ours], sides[theirs]


def measure(ask: Callable[[bytes], None], bodies: list[bytes], count: int, queries: int, seed: int) -> Run:
    """Let clients ask one query after the other, each of its own recordings.

    Args:
        ask: sends a query and waits for the answer.
        bodies: sound files to choose from.
        count: clients at once.
        queries: of each client.
        seed: another one gives other recordings.
    """
    prepared = [
        [_varied(bodies[(client * queries + n) % len(bodies)], (seed, count, client, n)) for n in range(queries)]
        for client in range(count)
    ]

    def client_of(number: int) -> list[float]:
        latencies = []
        for body in prepared[number]:
            start = time.perf_counter()
            ask(body)
            latencies.append(time.perf_counter() - start)
        return latencies

    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        latencies = [one for many in pool.map(client_of, range(count)) for one in many]
    return Run(tuple(latencies), time.perf_counter() - start)


def _varied(body: bytes, seed: tuple[int, ...]) -> bytes:
    """Return the recording with other noise, so that no server has met it before."""
    waveform, _ = soundfile.read(io.BytesIO(body))
    return _body(waveform, len(waveform) / SAMPLE_RATE_HZ, seed=hash(seed) % 2**32)


def _ask(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "audio/wav"})
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()
