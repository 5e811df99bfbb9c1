"""Benchmark the loss of a large batch, computed in row chunks, against the plain formula over the whole matrix.

    python jobs/benchmark.py loss
    python jobs/benchmark.py loss --large-own-rows 32768      # all rows on one worker: about 5 minutes on 2 cores

Compares loss and gradients of both, then their time, then the memory of each in a separate process. The large
case is one worker's share of a global batch: its own rows against those of all workers.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from brewclip import losses as losses_module
from brewclip.benchmarks.measure import BenchmarkOptions, Limit, compare_in_turn, print_limit
from brewclip.benchmarks.memory import watch
from brewclip.config.ranges import Range
from brewclip.errors import UserError
from brewclip.losses import brewclip_loss
from brewclip.models.brewclip import Features

_LEAST_RATIO = 0.9
_MOST_DIFFERENCE = 1e-5
_MOST_LARGE_GB = 4.0


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes and number of runs."""

    num_rows: Annotated[int, Range(2, 2**20)] = 5120
    """Batch of the comparison; with more than 4,096 rows it is computed in chunks."""
    num_dimensions: Annotated[int, Range(1, 65_536)] = 768
    """Dimensions of the features."""
    num_pairs: Annotated[int, Range(1, 1000)] = 3
    """Measured runs of each side."""
    large_own_rows: Annotated[int, Range(0, 2**20)] = 2048
    """Rows of one worker in the case whose memory is measured; 0 skips it."""
    large_all_rows: Annotated[int, Range(0, 2**24)] = 32_768
    """Rows of all workers in that case."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    rows, dimensions = options.num_rows, options.num_dimensions
    limits = [print_limit(_difference(rows, dimensions))]
    comparison = compare_in_turn(
        f"loss and gradients of {rows:,} rows in chunks, against the plain formula",
        functools.partial(_rate, rows, dimensions, plain=False),
        functools.partial(_rate, rows, dimensions, plain=True),
        num_pairs=options.num_pairs,
        unit="rows/s",
        target=_LEAST_RATIO,
    )
    for name, plain in (("plain formula", True), ("in chunks", False)):
        limits.append(_peak(f"peak memory of {rows:,} rows, {name}", rows, rows, dimensions, plain=plain))
    own, everyone = options.large_own_rows, options.large_all_rows
    if own:
        name = f"peak memory of {own:,} of {everyone:,} rows, in chunks"
        limits.append(_peak(name, own, everyone, dimensions, plain=False, most=_MOST_LARGE_GB))
    return {"comparisons": [comparison.record()], "limits": [limit.record() for limit in limits]}


def _check(options: Options) -> None:
    if options.large_own_rows and not 2 <= options.large_own_rows <= options.large_all_rows:
        raise UserError(f"--large-own-rows {options.large_own_rows} must be 2..{options.large_all_rows}, all rows")


def step(own_rows: int, all_rows: int, dimensions: int, *, plain: bool) -> list[Tensor]:
    """Compute the loss of one worker's rows and its gradients.

    Returns:
        The loss, and the gradients of image, acoustic and text features and of the logit scale.
    """
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(own_rows, dimensions, generator=generator, requires_grad=True) for _ in range(3)]
    scale = torch.tensor(2.66, requires_grad=True)
    image, acoustic, text = parts
    gather = _gathering(all_rows - own_rows)
    before = losses_module._MAX_LOGITS
    losses_module._MAX_LOGITS = own_rows * all_rows if plain else min(before, own_rows * all_rows - 1)
    try:
        features = Features(image, acoustic + text, acoustic, text)
        own_ids, all_ids = torch.arange(own_rows), torch.arange(all_rows)
        loss = brewclip_loss(features, own_ids, scale, 0.1, gather, all_ids=all_ids)["loss"]
        loss.backward()
    finally:
        losses_module._MAX_LOGITS = before
    return [loss.detach(), *(part.grad for part in (*parts, scale) if part.grad is not None)]


def _gathering(other_rows: int) -> Callable[[Tensor], Tensor]:
    """Return a substitute for the gather: rows of other workers follow this one's."""

    def gather(x: Tensor) -> Tensor:
        return torch.cat([x, torch.randn(other_rows, *x.shape[1:])])

    return gather if other_rows else lambda x: x


def _difference(rows: int, dimensions: int) -> Limit:
    """Return the largest difference of loss and gradients, relative to the largest value of each."""
    pairs = zip(
        step(rows, rows, dimensions, plain=False), step(rows, rows, dimensions, plain=True), strict=True
    )  # fmt: skip
    worst = max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
    return Limit("largest relative difference of loss and gradients", (worst,), "", _MOST_DIFFERENCE)


def _rate(rows: int, dimensions: int, *, plain: bool) -> float:
    started = time.perf_counter()
    step(rows, rows, dimensions, plain=plain)
    return rows / (time.perf_counter() - started)


def _peak(name: str, own_rows: int, all_rows: int, dimensions: int, *, plain: bool, most: float = 0.0) -> Limit:
    peak = watch(
        "from brewclip.benchmarks.loss import step\n"
        f"step({own_rows}, {all_rows}, {dimensions}, plain={plain})"
    )  # fmt: skip
    return print_limit(Limit(name, (peak.rss_bytes / 1e9,), "GB", most))
