"""Results of the scaling benchmark: ratios, start-up times, and the step of two workers against its prediction."""

import functools
import statistics
from dataclasses import replace
from typing import Any

from brewclip.benchmarks.measure import Comparison, Limit, print_limit, show
from brewclip.benchmarks.traffic import Machine, Tower, Workload, step_time

_LEAST_FED_SHARE = 0.95
_LEAST_WEAK_SCALING = 1.8
SCENES = Workload("scenes", Tower(160, 4, 41), Tower(128, 4, 24), 2.0 * 36 * 3 * 16**2 * 160, 128, 0, 0, 200_000)
Runs = dict[int, list[dict[str, Any]]]
"""What rank 0 of each run measured, by the number of workers."""


def _rates(runs: Runs, num_workers: int, source: str) -> tuple[float, ...]:
    return tuple(rate for found in runs[num_workers] for rate in found["rates"][source])


def compare_runs(runs: Runs, pairs_per_worker: int) -> tuple[list[Comparison], list[Limit]]:
    """Compare the rates of the sources and of one worker and two, and print the results."""
    rates = functools.partial(_rates, runs)
    comparisons = [
        Comparison(
            "one worker fed through Ray, S3 and the stream against memory",
            rates(1, "stream"),
            rates(1, "memory"),
            "pairs/s",
            _LEAST_FED_SHARE,
        ),
        Comparison(
            "one worker fed by a stream that decodes every image, as in a first epoch, against memory",
            rates(1, "first_epoch"),
            rates(1, "memory"),
            "pairs/s",
            _LEAST_FED_SHARE,
        ),
        Comparison(
            f"two workers against one, {pairs_per_worker} pairs each",
            rates(2, "stream"),
            rates(1, "stream"),
            "pairs/s",
            _LEAST_WEAK_SCALING,
        ),
        Comparison(
            f"two workers against one, {pairs_per_worker} pairs each, all from memory",
            rates(2, "memory"),
            rates(1, "memory"),
            "pairs/s",
        ),
        Comparison(
            f"two workers against one, {pairs_per_worker} pairs each, without any exchange: the cores' limit",
            rates(2, "apart"),
            rates(1, "apart"),
            "pairs/s",
        ),
    ]
    for comparison in comparisons:
        print(comparison.line(), flush=True)
    names = {"workers": "Ray's workers are up", "weights": "weights are loaded", "batch": "first batch"}
    everyone = [found["before_first_step"] for of in runs.values() for found in of]
    limits = [
        print_limit(Limit(f"before the first step, {name}", tuple(parts[key] for parts in everyone), "s"))
        for key, name in names.items()
    ]
    return comparisons, limits


def predict_step(runs: Runs, pairs_per_worker: int) -> dict[str, float]:
    """Compare the step time of two workers with the prediction from one worker's speed and the link.

    Cores share their memory, GPUs do not: the speed is that of a worker while the other one computes, too.
    """
    workload = replace(SCENES, trained_parameters=runs[2][0]["trained_parameters"])

    def median_seconds(num_workers: int, source: str) -> float:
        return num_workers * pairs_per_worker / statistics.median(_rates(runs, num_workers, source))

    alone = median_seconds(1, "memory")
    beside_another = alone * median_seconds(2, "apart") / median_seconds(1, "apart")
    flops = step_time(workload, Machine(1.0, 1.0, 0.0), 1, pairs_per_worker).seconds / beside_another
    predicted = [
        step_time(workload, Machine(flops, **found["link"]), 2, pairs_per_worker).seconds
        for found in runs[2]
        if found["link"]
    ]
    figures = {
        "one_worker_seconds": alone,
        "one_worker_while_another_computes_seconds": beside_another,
        "two_workers_predicted_seconds": sum(predicted) / max(1, len(predicted)),
        "two_workers_measured_seconds": median_seconds(2, "memory"),
        **runs[2][0]["link"],
    }
    print(
        f"a step of one worker {show(1000 * alone)} ms, {show(1000 * beside_another)} ms while another one computes; "
        f"of two: {show(1000 * figures['two_workers_predicted_seconds'])} ms by arithmetic, "
        f"{show(1000 * figures['two_workers_measured_seconds'])} ms measured",
        flush=True,
    )
    return figures
