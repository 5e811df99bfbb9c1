"""Benchmark exact recall by tiles against sorting the whole similarity matrix, as retrieval code usually does.

    python jobs/benchmark.py recall
    python jobs/benchmark.py recall --large-seconds 0      # without a time limit on the large case: about 20 minutes

Both compute the rank of every query in both directions over the same random features; their ranks are compared. The
large case runs in a separate process, whose resident memory is measured; it is killed after --large-seconds, as memory
no longer grows after the first tiles.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from brewclip.benchmarks.measure import BenchmarkOptions, Limit, compare_in_turn, print_limit
from brewclip.benchmarks.memory import watch
from brewclip.config.ranges import Range
from brewclip.errors import UserError
from brewclip.metrics import retrieval

_LEAST_RATIO = 10.0
_MOST_SECONDS = 3.0
_MOST_GB = 4.0
_NOISE = 4.0  # added to an image's features: then about 97 % of 25,000 recordings rank theirs first


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes and number of runs."""

    num_speech: Annotated[int, Range(1, 10**8)] = 25_000
    """Recordings."""
    num_images: Annotated[int, Range(1, 10**8)] = 5_000
    """Images."""
    num_dimensions: Annotated[int, Range(1, 65_536)] = 512
    """Dimensions of the features."""
    num_pairs: Annotated[int, Range(1, 1000)] = 3
    """Measured runs of each side."""
    large_speech: Annotated[int, Range(0, 10**8)] = 1_000_000
    """Recordings of the case whose memory is measured; 0 skips it."""
    large_images: Annotated[int, Range(0, 10**8)] = 100_000
    """Images of that case."""
    large_seconds: Annotated[float, Range(0, 86_400)] = 30.0
    """Time limit of that case; 0 for none."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if an option is invalid.
    """
    _check(options)
    features = make_features(options.num_speech, options.num_images, options.num_dimensions)
    seconds: list[float] = []
    ranks: dict[str, NDArray[np.int64]] = {}
    comparison = compare_in_turn(
        f"recall of {options.num_speech:,} recordings in {options.num_images:,} images, "
        "against sorting the whole matrix",
        functools.partial(_rate, "tiles", _ranks_by_tiles, features, ranks, seconds),
        functools.partial(_rate, "sorting", ranks_by_sorting, features, ranks, []),
        num_pairs=options.num_pairs,
        unit="recordings/s",
        target=_LEAST_RATIO,
    )
    different = int((ranks["tiles"] != ranks["sorting"]).sum())
    print(f"ranks that differ: {different} of {len(ranks['tiles'])}", flush=True)
    limits = [print_limit(Limit("seconds of it", tuple(seconds[1:]), "s", _MOST_SECONDS))]
    if options.large_speech:
        limits.append(_measure_large(options))
    return {
        "comparisons": [comparison.record()],
        "limits": [limit.record() for limit in limits],
        "ranks_that_differ": different,
    }


def _check(options: Options) -> None:
    if not 1 <= options.num_images <= options.num_speech:
        raise UserError(f"--num-images {options.num_images} must be 1..{options.num_speech}, the recordings")
    if options.large_speech and not 1 <= options.large_images <= options.large_speech:
        raise UserError(f"--large-images {options.large_images} must be 1..{options.large_speech}, its recordings")


def make_features(num_speech: int, num_images: int, num_dimensions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return speech (Q, D), the image of each recording (Q,), images (G, D); a recording is an image with noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, num_dimensions, generator=generator)
    answers = torch.arange(num_speech)[torch.randperm(num_speech, generator=generator)] % num_images
    speech = torch.empty(num_speech, num_dimensions).normal_(0, _NOISE, generator=generator)
    for rows in torch.arange(num_speech).split(8192):  # the large case does not fit into memory twice
        speech[rows] += images[answers[rows]]
    return speech, answers, images


def ranks_by_sorting(speech: Tensor, answers: Tensor, images: Tensor) -> NDArray[np.int64]:
    """Return the rank of each recording's image, then the best rank of each image's recordings, by two argsorts."""
    scores = F.normalize(speech, dim=1) @ F.normalize(images, dim=1).T
    order = scores.argsort(dim=1, descending=True)
    to_image = (order == answers[:, None]).int().argmax(dim=1) + 1
    order = scores.T.argsort(dim=1, descending=True)
    to_speech = (answers[order] == torch.arange(len(images))[:, None]).int().argmax(dim=1) + 1
    return torch.cat([to_image, to_speech]).numpy()


def _ranks_by_tiles(speech: Tensor, answers: Tensor, images: Tensor) -> NDArray[np.int64]:
    result = retrieval(speech, answers, images, np.arange(len(images)))
    return np.concatenate([result.speech_to_image_rank, result.image_to_speech_rank])


def _rate(
    name: str,
    rank: Callable[..., NDArray[np.int64]],
    features: tuple[Tensor, Tensor, Tensor],
    ranks: dict[str, NDArray[np.int64]],
    seconds: list[float],
) -> float:
    started = time.perf_counter()
    ranks[name] = rank(*features)
    seconds.append(time.perf_counter() - started)
    return len(features[0]) / seconds[-1]


def _measure_large(options: Options) -> Limit:
    sizes = f"{options.large_speech}, {options.large_images}, {options.num_dimensions}"
    peak = watch(
        "import numpy; from brewclip.benchmarks.recall import make_features; from brewclip.metrics import retrieval\n"
        f"speech, answers, images = make_features({sizes})\n"
        "retrieval(speech, answers, images, numpy.arange(len(images)))",
        max_seconds=options.large_seconds,
    )
    how = "all of it" if peak.finished else f"its first {peak.seconds:.0f} s"
    name = f"peak memory with {options.large_speech:,} against {options.large_images:,} ({how})"
    return print_limit(Limit(name, (peak.rss_bytes / 1e9,), "GB", _MOST_GB))
