"""One trial of a sweep: a complete training run with its own Ray Train workers, as in jobs/train.py.

It is pickled by value, since the folder tune/ need not be importable on the cluster.
"""

import os
import re
from typing import Any

from brewclip.config import Config, check, unflatten
from brewclip.errors import UserError

TRIAL = "trial"  # among the settings that Tune passes to a trial: its number in the sweep, five digits


def trial_config(shared: dict[str, Any], params: dict[str, Any], run_name: str) -> Config:
    """Return the settings of a trial: the shared ones, overridden by the trial's own.

    Raises:
        UserError: if they are incompatible.
    """
    own = {name: value.item() if hasattr(value, "item") else value for name, value in params.items()}
    try:
        config = unflatten(shared | own | {"run.name": run_name, "run.fresh": False})
        check(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    return config


def trial_number(number: int) -> str:
    """Return a trial's number as it is recorded: five digits."""
    return f"{number:05d}"


def trial_run_name(sweep: str, trial: str) -> str:
    """Return the name of a trial's run; its number is unchanged when a sweep is resumed."""
    return f"{sweep}-{trial}"


def is_trial_of(sweep: str, run_file: str) -> bool:
    """Return whether a file below the runs belongs to a trial of a sweep: 5 digits, 8 hex ones in earlier versions."""
    return re.fullmatch(rf"{re.escape(sweep)}-(\d{{5}}|[0-9a-f]{{8}})/.*", run_file) is not None


def run_trial(params: dict[str, Any], sweep: str, shared: dict[str, Any], environment: dict[str, str]) -> None:
    """Train with the parameters chosen by Tune; evaluations are reported to Tune, the last one from here.

    Args:
        params: dotted settings of this trial, and its number.
        sweep: name of the sweep.
        shared: settings of all trials, flattened.
        environment: of the program that the user started.

    Raises:
        UserError: if the run fails; Tune records it and continues with other trials.
    """
    # As brewclip.cluster.connect does for a driver; read when the trainer is built.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1.0")
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from brewclip.training.launch import claim_run, run_training
    from brewclip.training.state import report_of

    own = {name: value for name, value in params.items() if name != TRIAL}
    config = trial_config(shared, own, trial_run_name(sweep, params[TRIAL]))
    with claim_run(config) as fence:
        result = run_training(config, fence, environment=environment, callbacks=[TuneReportCallback()])
    ray.tune.report(report_of(result["step"], result["best"], config))
