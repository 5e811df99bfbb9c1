"""Benchmark training through Ray, S3 and the stream on one and two workers: data cost, weak scaling, start-up time.

    python jobs/benchmark.py scaling
    python jobs/benchmark.py scaling --image docs/scaling.png --page docs/scaling.md

A run starts workers of the preset `scenes` with Ray Train over a local S3 server. In each worker the training loop is
fed alternately by the stream (with curves, flags and counts as in a real run), by a stream that decodes each image
again, as in a first epoch, and from memory with nothing else. Runs of one worker and of two with twice the batch
alternate. Both of two workers also compute at once without exchanging anything, which is what these cores can do at
most. The arithmetic of `traffic`, given that speed and the link's, predicts the step time of two workers, and the
figure for GPUs.
"""

import functools
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from brewclip.benchmarks.corpus import write_features
from brewclip.benchmarks.gpu_scaling import arithmetic_rows, draw_scaling, scaling_tables
from brewclip.benchmarks.measure import BenchmarkOptions, environment_set
from brewclip.benchmarks.scaling_results import Runs, compare_runs, predict_step
from brewclip.benchmarks.summary import CLOSING, OPENING, put_between_markers
from brewclip.config import Config, flatten, unflatten
from brewclip.config.ranges import Range
from brewclip.errors import UserError
from brewclip.local import S3Server

_LINK_BYTES = 2**24  # summed over both workers to measure the link
_NUM_LINK_RUNS = 5
_RESULT = "benchmark-result.json"


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes, number of runs, and output files."""

    pairs_per_worker: Annotated[int, Range(1, 65_536)] = 64
    """Pairs per step on each worker; the preset has 64."""
    num_samples: Annotated[int, Range(2, 10**7)] = 512
    """Pairs of the split."""
    num_steps: Annotated[int, Range(1, 10**6)] = 10
    """Steps per measurement."""
    num_pairs: Annotated[int, Range(1, 1000)] = 2
    """Measurements of each source in each run, alternating."""
    num_runs: Annotated[int, Range(1, 1000)] = 2
    """Runs on one worker, and as many on two; each starts new Ray workers, which takes about 20 s."""
    image: str = ""
    """File for the figure of predicted scaling, such as scaling.png; empty draws none."""
    page: str = ""
    """Page for the tables, between <!-- benchmarks --> and <!-- /benchmarks -->; empty writes none."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    runs: Runs = {1: [], 2: []}
    with (
        tempfile.TemporaryDirectory(prefix="brewclip-benchmark-") as folder,
        S3Server(Path(folder) / "objects", Path(folder)) as server,
        environment_set(environment := server.environment()),
    ):
        bucket = server.create_bucket("benchmark")
        for split in ("train", "dev"):
            write_features(f"{bucket}/benchmark/whisper-base", split, options.num_samples)
        from brewclip.cluster import connect

        connect()
        for number in range(options.num_runs):
            for num_workers in (1, 2) if number % 2 == 0 else (2, 1):
                runs[num_workers].append(_run_workers(bucket, environment, options, num_workers))
    comparisons, limits = compare_runs(runs, options.pairs_per_worker)
    prediction = predict_step(runs, options.pairs_per_worker)
    if options.image:
        draw_scaling(options.image)
    if options.page and not put_between_markers(Path(options.page), scaling_tables(prediction)):
        raise UserError(f"--page {options.page} has no markers {OPENING} and {CLOSING}")
    return {
        "comparisons": [comparison.record() for comparison in comparisons],
        "limits": [limit.record() for limit in limits],
        "prediction": prediction,
        "arithmetic": arithmetic_rows(),
    }


def _check(options: Options) -> None:
    if 2 * options.pairs_per_worker > options.num_samples:
        raise UserError(f"--pairs-per-worker {options.pairs_per_worker} must be 1..{options.num_samples // 2}")


# ------------------------------------------------------------------ in the cluster


def _run_workers(bucket: str, environment: dict[str, str], options: Options, num_workers: int) -> dict[str, Any]:
    """Start workers, let them measure, and return the results of rank 0."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from brewclip.benchmarks.steps import build_config
    from brewclip.data.storage import open_storage

    config = build_config(bucket, options.pairs_per_worker * num_workers, options.num_steps, num_workers)
    settings = {"config": flatten(config), "num_pairs": options.num_pairs}
    settings |= {"environment": environment, "submitted": time.time()}  # an existing cluster has another S3
    with tempfile.TemporaryDirectory(prefix="brewclip-train-") as folder:
        TorchTrainer(
            measure_worker,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # mypy takes it for the old one of ray.air
                name=config.run_name,
                storage_path=folder,
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        ).fit()
    found: dict[str, Any] = json.loads(open_storage(config.run_url).read(_RESULT))
    return found


def measure_worker(settings: dict[str, Any]) -> None:
    """Train on this worker, fed by each source in turn; rank 0 writes the rates to storage."""
    from brewclip.data.storage import open_storage
    from brewclip.factory import build_decoder
    from brewclip.pretrained.load import load_clip
    from brewclip.training.assignment import Assignment
    from brewclip.training.worker import build_worker

    started = time.time()
    os.environ.update(settings["environment"])
    config = unflatten(settings["config"])
    worker = build_worker(config, Assignment(settings["config"], submitted=settings["submitted"]))
    built = time.time()
    batches = worker.iter_batches()
    first = next(batches)
    parts = {"workers": started - settings["submitted"], "weights": built - started, "batch": time.time() - built}
    in_memory = [first, *itertools.islice(batches, 3)]
    # Without an image cache, and not as the first step of the run.
    decoder = build_decoder(config, load_clip(config.model.clip))
    worker.parts, worker.first_step = replace(worker.parts, decoder=decoder), -1
    sources = {
        "stream": functools.partial(_steps, worker, batches, is_real=True),
        "first_epoch": functools.partial(_steps, worker, worker.iter_batches(), is_real=True),
        "memory": functools.partial(_steps, worker, itertools.cycle(in_memory), is_real=False),
        "apart": functools.partial(_steps_apart, worker, itertools.cycle(in_memory)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for pair in range(-1, settings["num_pairs"]):  # the first is a warm-up of all sources
        for name in sources if pair % 2 == 0 else reversed(sources):
            rate = sources[name]()
            if pair >= 0:
                rates[name].append(rate)
    trained = sum(parameter.numel() for parameter in worker.parts.model.trained_parameters().values())
    found = {"rates": rates, "before_first_step": parts, "link": _measure_link(), "trained_parameters": trained}
    if worker.rank == 0:
        open_storage(config.run_url).write(_RESULT, json.dumps(found).encode())
    worker.close()


def _steps(worker: Any, batches: Iterator[Any], *, is_real: bool) -> float:
    """Train for the configured steps; return pairs per second over all workers."""
    from brewclip.benchmarks.steps import train_only
    from brewclip.training.loop import train
    from brewclip.training.state import TrainState

    config: Config = worker.config
    model, optimizer = worker.parts.model, worker.parts.optimizer
    started = time.perf_counter()
    if is_real:
        train(config, model, optimizer, batches, TrainState(), _WithoutCheckpoints(worker))
    else:
        train_only(config, model, optimizer, batches)
    return config.optim.total_steps * config.run.global_batch_size / (time.perf_counter() - started)


def _steps_apart(worker: Any, batches: Iterator[Any]) -> float:
    """Compute forward and backward passes alone while the other workers do the same; return pairs per second of all."""
    import torch.distributed as dist

    from brewclip.benchmarks.steps import forward_and_backward

    config: Config = worker.config
    if dist.is_initialized():
        dist.barrier()
    started = time.perf_counter()
    for batch, _ in itertools.islice(batches, config.optim.total_steps):
        forward_and_backward(config, worker.parts.model, batch)
    seconds = time.perf_counter() - started
    worker.parts.optimizer.zero_grad()
    return config.optim.total_steps * config.run.global_batch_size / seconds


class _WithoutCheckpoints:
    """The hooks of a worker, without its evaluations and checkpoints."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def evaluate(self) -> dict[str, float]:
        return {}

    def save(self, state: Any, best: bool) -> None:
        """Write nothing."""


def _measure_link() -> dict[str, float]:
    """Return bytes per second and latency of a sum over two workers; empty for one."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() < 2:
        return {}
    seconds = {}
    for size in (1, _LINK_BYTES // 4):
        values = torch.ones(size)
        dist.all_reduce(values)
        started = time.perf_counter()
        for _ in range(_NUM_LINK_RUNS):
            dist.all_reduce(values)
        seconds[size] = (time.perf_counter() - started) / _NUM_LINK_RUNS
    small, large = seconds.values()
    # Between two workers, a sum sends its bytes once (twice half of them), in two hops.
    return {"bytes_per_second": _LINK_BYTES / max(large - small, 1e-9), "latency_seconds": small / 2}
