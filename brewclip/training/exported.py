"""Numbers of a running training for Prometheus, beside those that Ray exports about itself.

Ray adds the prefix `ray_` and serves them on the metrics port of the worker's node; MLflow keeps the curves. Names and
labels are what k8s/components/monitoring asks for.
"""

import time
from collections.abc import Mapping


class ExportedMetrics:
    """Gauges of one run, set by its rank 0; nothing outside a Ray worker.

    Args:
        run_name: label `run` of all of them.
        global_batch_size: samples of a step.
    """

    def __init__(self, run_name: str, global_batch_size: int) -> None:
        import ray
        from ray.util.metrics import Gauge

        self._global_batch_size, self._gauges = global_batch_size, {}
        if not ray.is_initialized():
            return
        for name, description in _DESCRIPTIONS.items():
            gauge = Gauge(f"brewclip_train_{name}", description=description, tag_keys=("run",))
            gauge.set_default_tags({"run": run_name})
            self._gauges[name] = gauge
        self._set("start_time_seconds", time.time())

    def update(self, metrics: Mapping[str, float], step: int) -> None:
        """Export what the loop logs at a step; metrics of an evaluation change the step alone."""
        self._set("step", step)
        self._set("samples", step * self._global_batch_size)
        for name in ("loss", "samples_per_second"):
            if f"train/{name}" in metrics:
                self._set(name, metrics[f"train/{name}"])
        if "train/loss" in metrics:
            self._set("bad_samples", sum(count for key, count in metrics.items() if key.startswith("data/bad/")))

    def _set(self, name: str, value: float) -> None:
        if name in self._gauges:
            self._gauges[name].set(value)


_DESCRIPTIONS = {
    "start_time_seconds": "When this attempt of the run started, in seconds since 1970.",
    "step": "Optimiser steps done.",
    "samples": "Samples of the steps done.",
    "loss": "Training loss.",
    "samples_per_second": "Samples per second over all workers.",
    "bad_samples": "Samples that could not be used since this attempt started.",
}
