"""State of a training run: step, best evaluation, problem; light to import, for drivers and workers."""

from dataclasses import dataclass, field

from brewclip.config import Config

STOP_REQUESTED = "stop requested"


@dataclass
class TrainState:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        best: metric and step of the best evaluation so far; empty before the first.
        metrics: dev metrics of the last evaluation, if it was at this step.
        problem: why the run ended early; empty if it did not.
    """

    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def report_of(step: int, best: dict[str, float], config: Config) -> dict[str, float]:
    """Return what is reported of an evaluation: the step, and the best of the selection metric so far."""
    return {"step": step, config.run.selection_metric: best[config.run.selection_metric]}
