"""Settings of a sweep, in addition to those of its trials; light to import, so that flag errors appear at once."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from brewclip.config import Config
from brewclip.config.ranges import Range
from brewclip.errors import UserError

Scheduler = Literal["asha", "median", "none", "pbt"]
Search = Literal["tpe", "random"]


@dataclass(frozen=True)
class SweepOptions:
    """Search, early stopping and registration of a sweep."""

    num_trials: Annotated[int, Range(1, 100_000)] = 20
    """Trials of the whole sweep."""
    scheduler: Scheduler = "asha"
    """Early stopping of weak trials: `asha`, `median` or `none`. `pbt` is refused: it changes the settings of a running
    trial, and a trial here is a run, whose settings are fixed in its checkpoints."""
    search: Search = "tpe"
    """Search algorithm: Optuna's TPE, or random; also random if Optuna is not installed."""
    reduction_factor: Annotated[int, Range(2, 1000)] = 2
    """ASHA continues the best 1 of so many trials at each rung; rungs are this factor apart, 2 or more."""
    max_concurrent: Annotated[int, Range(0, 100_000, note="0 is as many as fit")] = 0
    """Maximum parallel trials; 0 is as many as fit on the free CPUs or GPUs."""
    max_failures: Annotated[int, Range(-1, 10**6, note="-1 is unlimited")] = 2
    """Worker failures after which a trial is given up; the sweep continues."""
    register_as: str = "brewclip"
    """Name of the best checkpoint in MLflow's registry, models:/NAME@best; empty registers nothing."""


@dataclass(frozen=True)
class SweepConfig(Config):
    """Settings of a sweep: those shared by its trials, and its own."""

    sweep: SweepOptions = SweepOptions()


def check_options(config: SweepConfig) -> None:
    """Check what the ranges of single settings do not say.

    Raises:
        UserError: if one is invalid; one line with the remedy.
    """
    sweep = config.sweep
    if sweep.scheduler == "pbt":
        raise UserError(
            "--sweep.scheduler pbt does not fit: it changes the settings of a running trial, and a trial here is a "
            "run whose settings stand in its checkpoints: choose asha, median or none"
        )


def shared_settings(config: SweepConfig) -> Config:
    """Return the settings shared by all trials, without those of the sweep."""
    return Config(**{item.name: getattr(config, item.name) for item in fields(Config)})
