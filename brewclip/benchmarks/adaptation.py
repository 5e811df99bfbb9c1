"""Benchmark prompts against an adapter: dev recall over the time and the operations of training.

    python jobs/benchmark.py adaptation --storage URL
    python jobs/benchmark.py adaptation --storage URL --presets scenes scenes_adapter --image adaptation.png

Each preset is trained with its own settings on its corpus, which must be extracted (docs/corpora/scenes.md), in this
process on one thread; recall on dev is measured on the way, and not counted. Operations are those of matrix products,
forward and backward, of one step of the preset's batch.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from brewclip.benchmarks.measure import BenchmarkOptions, show
from brewclip.benchmarks.steps import count_flops
from brewclip.config import Config, TrackingConfig, preset
from brewclip.config.ranges import THREADS, Range
from brewclip.config.submitted import default_storage
from brewclip.training.parts import build_parts
from brewclip.training.state import TrainState
from brewclip.training.worker import Worker, worker_device

_METRIC = "dev/mean_recall"


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """What is trained, and how often it is measured."""

    storage: str = default_storage()
    """Base URL of the corpora."""
    presets: tuple[str, ...] = ("scenes_narratives", "scenes_narratives_adapter")
    """Presets to compare; the first is the baseline."""
    num_evaluations: Annotated[int, Range(1, 1000)] = 12
    """Evaluations on dev during a training."""
    num_threads: Annotated[int, THREADS] = 1
    """CPU threads of torch."""
    image: str = ""
    """PNG file for the figure; empty draws none."""


@dataclass(frozen=True)
class Course:
    """The course of one training.

    Attributes:
        preset: name of the preset.
        step_flops: operations of a step.
        points: step, seconds of training so far, and mean recall on dev in percent; the first is before training.
    """

    preset: str
    step_flops: int
    points: list[tuple[int, float, float]]

    def seconds_to(self, recall: float) -> float | None:
        """Return after how many seconds dev recall was first at least `recall`; None if never."""
        return next((seconds for _, seconds, value in self.points if value >= recall), None)


def run(options: Options) -> dict[str, Any]:
    """Train each preset, print and draw the courses, and return them for the JSON file.

    Raises:
        ValueError, UserError: if a preset is unknown, or its corpus is not extracted.
    """
    torch.set_num_threads(options.num_threads)
    courses = [train_measured(name, options.storage, options.num_evaluations) for name in options.presets]
    first = courses[0]
    goal = max(value for _, _, value in first.points)
    for course in courses:
        (last_step, seconds, _) = course.points[-1]
        best, reached = max(value for _, _, value in course.points), course.seconds_to(goal)
        print(
            f"{course.preset}: mean recall on dev {course.points[0][2]:.1f} -> {best:.1f} %, {last_step} steps of "
            f"{course.step_flops / 1e9:.3g} GFLOP in {seconds:.1f} s, {1000 * seconds / last_step:.3g} ms a step; "
            f"{goal:.1f} % " + ("not reached" if reached is None else f"after {reached:.1f} s"),
            flush=True,
        )
    for course in courses[1:]:
        ratio = first.step_flops / course.step_flops
        print(f"a step of {course.preset} takes 1/{show(ratio)} of the operations of {first.preset}", flush=True)
    if options.image:
        draw_courses(courses).savefig(options.image, format="png")
        print(f"figure: {options.image}", flush=True)
    return {"courses": [{"preset": one.preset, "step_flops": one.step_flops, "points": one.points} for one in courses]}


def train_measured(name: str, storage: str, num_evaluations: int) -> Course:
    """Train a preset on its corpus without Ray, tracking or checkpoints."""
    config = preset(name)
    every = max(1, config.optim.total_steps // num_evaluations)
    unused = f"benchmark-{uuid.uuid4().hex}"  # nothing is resumed, and nothing is written
    worker = _MeasuredWorker(
        replace(
            config,
            storage=storage,
            run=replace(config.run, name=unused, eval_every_steps=every),
            cluster=replace(config.cluster, num_workers=1),
            tracking=TrackingConfig(uri=""),
        )
    )
    try:
        return worker.measure(name)
    finally:
        worker.close()


class _MeasuredWorker(Worker):
    """A worker outside of Ray that keeps dev recall with the seconds of training, and writes no checkpoint."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, build_parts(config, worker_device(config)))
        self._points: list[tuple[int, float, float]] = []
        self._started = self._paused = 0.0

    def measure(self, name: str) -> Course:
        """Train, and return the course."""
        flops = self._count_step()
        self._points.append((0, 0.0, super().evaluate()[_METRIC]))
        self._started = time.perf_counter()
        state = self.run()
        assert not state.problem, state.problem
        return Course(name, flops, self._points)

    def evaluate(self) -> dict[str, float]:
        """Measure dev, and leave the time out."""
        began = time.perf_counter()
        metrics = super().evaluate()
        self._paused += time.perf_counter() - began
        self._points.append((self.state.step, time.perf_counter() - self._started - self._paused, metrics[_METRIC]))
        return metrics

    def _count_step(self) -> int:
        """Return the operations of forward and backward of one batch; the model is left as it was."""
        batch, _ = next(self.iter_batches())
        flops = count_flops(self.config, self.parts.model, batch)
        self.parts.optimizer.zero_grad(set_to_none=True)
        return flops

    def save(self, state: TrainState, best: bool) -> None:
        """Write nothing."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record nothing."""

    def preempted(self) -> bool:
        """Return False: there is no cluster."""
        return False


def draw_courses(courses: Sequence[Course]) -> Figure:
    """Draw dev recall over the seconds and over the operations of training, with a logarithmic axis."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    seconds, operations = figure.subplots(1, 2, sharey=True)
    for course in courses:
        values = [value for _, _, value in course.points[1:]]
        spent = [passed for _, passed, _ in course.points[1:]]
        label = f"{course.preset}, {course.step_flops / 1e9:.3g} GFLOP a step"
        (line,) = seconds.plot(spent, values, marker="o", label=label)
        flops = [step * course.step_flops / 1e12 for step, _, _ in course.points[1:]]
        operations.plot(flops, values, marker="o", color=line.get_color())
        for axes in (seconds, operations):
            axes.axhline(course.points[0][2], color=line.get_color(), linestyle=":", linewidth=1)
    for axes, label in ((seconds, "seconds of training on one thread"), (operations, "TFLOP of training")):
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.25)
    seconds.set_ylabel("mean recall on dev in %; dotted: untrained")
    seconds.legend(fontsize=8)
    return figure
