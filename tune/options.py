"""The settings of a sweep, beside those of its trials; light to import, so that a wrong flag is told at once."""

from dataclasses import dataclass, fields
from typing import Literal

from brewclip.config import Config
from brewclip.errors import UserError

Scheduler = Literal["asha", "median", "none", "pbt"]
Search = Literal["tpe", "random"]


@dataclass(frozen=True)
class SweepOptions:
    """How trials are chosen and when they are stopped."""

    num_trials: int = 20
    """Trials of the whole sweep."""
    scheduler: Scheduler = "asha"
    """Who ends weak trials: `asha`, `median` or `none`. `pbt` is refused: it changes the settings of a running
    trial, and a trial here is a run, whose settings stand in its checkpoints."""
    search: Search = "tpe"
    """Who proposes settings: Optuna's TPE, or chance; chance as well where Optuna is not installed."""
    reduction_factor: int = 2
    """ASHA lets the best 1 of so many go on at each rung; rungs lie this factor apart, 2 or more."""
    max_concurrent: int = 0
    """Most trials at a time; 0 takes as many as the free CPUs or GPUs have room for."""
    max_failures: int = 2
    """Lost workers after which a trial is given up; the sweep goes on."""
    register_as: str = "brewclip"
    """Name of the best checkpoint in MLflow's registry, models:/NAME@best; empty registers nothing."""


@dataclass(frozen=True)
class SweepConfig(Config):
    """Settings of a sweep: those that its trials share, and its own."""

    sweep: SweepOptions = SweepOptions()


def check_options(config: SweepConfig) -> None:
    """Find what cannot be swept.

    Raises:
        UserError: one line with the remedy.
    """
    sweep = config.sweep
    if sweep.scheduler == "pbt":
        raise UserError(
            "--sweep.scheduler pbt does not fit: it changes the settings of a running trial, and a trial here is a "
            "run whose settings stand in its checkpoints: choose asha, median or none"
        )
    if sweep.num_trials < 1 or sweep.max_concurrent < 0:
        raise UserError(
            f"--sweep.num-trials {sweep.num_trials} must be 1 or more, --sweep.max-concurrent {sweep.max_concurrent} "
            "0 or more"
        )
    if sweep.reduction_factor < 2:
        raise UserError(f"--sweep.reduction-factor {sweep.reduction_factor} must be 2 or more")


def shared_settings(config: SweepConfig) -> Config:
    """Return the settings that all trials share, without those of the sweep."""
    return Config(**{item.name: getattr(config, item.name) for item in fields(Config)})
