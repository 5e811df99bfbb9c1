"""Benchmark the extraction's workers on Ray: two against one, their memory, and what a killed one costs.

    python jobs/benchmark.py extract_workers

Spoken captions are extracted by one worker and by two in turn, each with one CPU thread and Whisper loaded before. Then
one of two workers is killed in the middle: Ray starts it again, it loads Whisper, and does the part of 32 recordings
again that it had. What that costs is wall time, given in recordings that one worker extracts meanwhile.
"""

import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import psutil

from brewclip.benchmarks.corpus import write_captions
from brewclip.benchmarks.measure import BenchmarkOptions, Limit, compare_in_turn, print_limit
from brewclip.config import Config, preset
from brewclip.config.ranges import Range
from brewclip.corpora.actors import start_actor
from brewclip.corpora.extraction import plan_parts, run_parts, task_of
from brewclip.corpora.extraction_worker import Extractor, Part
from brewclip.data.manifest import Manifest, open_manifest

_LEAST_SCALING = 1.8
_MOST_GROWTH_MB = 50.0
_SIDE_PIXELS = 192


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Size, and number of runs."""

    num_recordings: Annotated[int, Range(64, 10**6)] = 64
    """Spoken captions of about 3 s."""
    num_pairs: Annotated[int, Range(2, 100)] = 2
    """Runs of one worker, and as many of two."""


@dataclass
class _Extraction:
    """Repeated extraction of a split to a new place, so that nothing is reused.

    Attributes:
        config: of the split.
        source: the split.
        parts: of it.
        actors: two; each loads Whisper in its first run.
        num_runs: done so far.
        memory_mb: resident memory of each actor's process, after each run.
    """

    config: Config
    source: Manifest
    parts: list[Part]
    actors: list[Any]
    num_runs: int = 0
    memory_mb: list[list[float]] = field(default_factory=list)

    def run(self, num_workers: int) -> float:
        """Extract by some of the actors; return seconds."""
        import ray

        self.num_runs += 1
        task = task_of(self.config, self.source, _SIDE_PIXELS)
        task = replace(task, target_url=f"{task.target_url}-{self.num_runs}")
        started = time.perf_counter()
        for _ in run_parts(f"run {self.num_runs}", task, self.parts, self.actors[:num_workers]):
            pass
        seconds = time.perf_counter() - started
        self.memory_mb.append(ray.get([actor.__ray_call__.remote(_memory_mb) for actor in self.actors]))
        return seconds

    def end(self) -> None:
        """End the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if Ray cannot be started.
    """
    from brewclip.cluster import check_resources, connect, demand_of

    with tempfile.TemporaryDirectory(prefix="brewclip-benchmark-") as folder:
        start = preset("scenes")
        config = replace(start, storage=Path(folder).as_uri(), data=replace(start.data, corpus="benchmark"))
        write_captions(config.corpus_url, "train", options.num_recordings)
        connect()
        check_resources(demand_of("the benchmark", config.cluster, 2))
        source = open_manifest(f"{config.corpus_url}/train")
        work = _Extraction(config, source, plan_parts(source), [start_actor(Extractor, config) for _ in range(2)])
        try:
            comparison = compare_in_turn(
                "extraction by two workers, against one",
                lambda: options.num_recordings / work.run(2),
                lambda: options.num_recordings / work.run(1),
                num_pairs=options.num_pairs,
                unit="recordings/s",
                target=_LEAST_SCALING,
            )
            growth = max(after - before for after, before in zip(work.memory_mb[-1], work.memory_mb[1], strict=True))
            undisturbed = options.num_recordings / statistics.median(comparison.ours)
            killed = _timed_with_kill(work, undisturbed / 2)
        finally:
            work.end()
    batch = config.extraction.batch_size
    lost = (killed - undisturbed) * statistics.median(comparison.theirs)
    limits = [
        Limit("growth of a worker's memory after the first runs", (growth,), "MB", _MOST_GROWTH_MB),
        Limit("a killed worker of two costs the time of", (lost,), "recordings", batch),
        Limit("a killed worker of two costs", (killed - undisturbed,), "s"),
    ]
    return {
        "comparisons": [comparison.record()],
        "limits": [print_limit(limit).record() for limit in limits],
    }


def _memory_mb(extractor: Extractor) -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


def _timed_with_kill(work: _Extraction, after_seconds: float) -> float:
    """Return the seconds of a run by two workers, one of which is killed after a while."""
    import ray

    timer = threading.Timer(after_seconds, lambda: ray.kill(work.actors[0], no_restart=False))
    timer.start()
    try:
        return work.run(2)
    finally:
        timer.cancel()
