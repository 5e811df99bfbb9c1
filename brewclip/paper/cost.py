"""What a training costs: operations of a pair, and pairs per second on one worker, of each trained row of a table."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from brewclip.benchmarks.steps import count_flops, forward_and_backward
from brewclip.cluster import Demand, available, check_resources, connect, uses_gpu
from brewclip.config import Config, flatten
from brewclip.data.reader import Rejections, iter_split
from brewclip.evaluation.identity import ResultCache
from brewclip.evaluation.pages import Section
from brewclip.paper.cells import Cell
from brewclip.training.parts import build_parts

_STUDY = "costs"
_PAIRS, _REPEATS = 32, 3
# Settings that affect neither operations nor time of a step.
_FREE = ("storage", "run.", "tracking.", "cluster.", "extraction.", "optim.", "loss.")


@dataclass(frozen=True)
class Cost:
    """Cost of a training step.

    Attributes:
        gflop_per_pair: matrix products and convolutions of one pair, forward and backward, with the frozen parts.
        pairs_per_second: with decoding, on one worker and one CPU thread, or one GPU; the fastest of three steps.
        num_trained: trained parameters.
        device: type of device.
    """

    gflop_per_pair: float
    pairs_per_second: float
    num_trained: int
    device: str


def measure_cost(config: Config) -> Cost:
    """Decode the first pairs of a training split, and train on them.

    Raises:
        UserError, ValueError, FileNotFoundError: as `build_parts`.
    """
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = build_parts(config, device)
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        found = iter_split(parts.train, parts.decoder, Rejections(parts.manifest.url), num_threads=1)
        pairs = [parts.at_position(pair, position) for position, (_, pair) in enumerate(islice(found, _PAIRS))]
        batch = parts.to_batch(pairs)
        forward_and_backward(config, parts.model, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    trained = sum(parameter.numel() for parameter in parts.model.trained_parameters().values())
    flops = count_flops(config, parts.model, batch)
    return Cost(flops / len(pairs) / 1e9, len(pairs) / min(seconds), trained, device.type)


def measure_all(configs: Sequence[Config]) -> list[Cost]:
    """Measure one cost after the other, on a worker; arguments and errors as in `measure_cost`."""
    return [measure_cost(config) for config in configs]


def costs_of(cells: Sequence[Cell], *, only_cached: bool = False) -> list[Cost | None]:
    """Return the cost of each cell's training; what is not cached is measured on a worker of the cluster, once.

    Raises:
        UserError: if the cluster has no room, or a training split is gone.
    """
    missing = [cell.train for cell in cells if not only_cached and _load(cell, check=True) is None]
    if missing:
        connect()
        import ray  # after it: a head of its own listens on loopback, which ray must know when it is imported

        gpus = 1 if uses_gpu(missing[0].cluster) and available("GPU") else 0
        check_resources(Demand("the cost of a training", 1, 1, gpus))
        plain = [_measured(config) for config in missing]
        found = ray.get(ray.remote(measure_all).options(num_cpus=1, num_gpus=gpus).remote(plain))
        for config, cost in zip(missing, found, strict=True):
            ResultCache(config, _STUDY).save(config.run_name, _identity(config), json.dumps(asdict(cost)).encode())
    return [_load(cell, check=not only_cached) for cell in cells]


def _measured(config: Config) -> Config:
    """Return the settings of a measurement: not recorded, and with every recording encoded in its step."""
    data = replace(config.data, cache_layers=False)
    return replace(config, tracking=replace(config.tracking, uri=""), data=data)


def _load(cell: Cell, *, check: bool) -> Cost | None:
    identity = _identity(cell.train) if check else None
    known = ResultCache(cell.train, _STUDY).load(cell.train.run_name, identity)
    return None if known is None else Cost(**json.loads(known))


def _identity(config: Config) -> dict[str, Any]:
    return {name: value for name, value in flatten(_measured(config)).items() if not name.startswith(_FREE)}


def cost_section(costs: Mapping[str, Mapping[str, Sequence[Cost]]]) -> Section:
    """Return the section on costs.

    Args:
        costs: corpus -> title of the row -> its cost, or nothing.
    """
    rows = [["corpus", "system", "GFLOP a pair", "pairs/s", "trained parameters", "device"]]
    rows += [
        [corpus, title, f"{one.gflop_per_pair:.2f}", f"{one.pairs_per_second:.1f}", f"{one.num_trained:,}", one.device]
        for corpus, by_title in costs.items()
        for title, found in by_title.items()
        for one in found
    ]
    text = (
        "Forward and backward of a training step with its frozen parts, and decoding, on one worker. BrewCLIP and the "
        "pipeline read what Whisper extracted once, which is not counted; SpeechCLIP-P encodes each recording "
        "again, as it does without --data.cache-layers."
    )
    return Section("Cost", text, rows)
