"""One trial of a sweep: a whole training run with Ray Train workers of its own, as jobs/train.py starts it.

It goes to the cluster by value, since the folder tune/ need not be importable there.
"""

import os
import re
from typing import Any

from brewclip.config import Config, check, unflatten
from brewclip.errors import UserError


def trial_config(shared: dict[str, Any], params: dict[str, Any], run_name: str) -> Config:
    """Return the settings of a trial: the shared ones with the trial's own laid over them.

    Raises:
        UserError: if they do not go together.
    """
    own = {name: value.item() if hasattr(value, "item") else value for name, value in params.items()}
    try:
        config = unflatten(shared | own | {"run.name": run_name, "run.fresh": False})
        check(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    return config


def trial_run_name(sweep: str, trial_id: str) -> str:
    """Return the name of a trial's run; Tune keeps the id of a trial when a sweep is taken up again."""
    return f"{sweep}-{trial_id.rpartition('_')[2]}"


def is_trial_of(sweep: str, run_file: str) -> bool:
    """Return whether a file below the runs belongs to a trial of a sweep: Tune's ids are 5 digits or 8 hex ones."""
    return re.fullmatch(rf"{re.escape(sweep)}-(\d{{5}}|[0-9a-f]{{8}})/.*", run_file) is not None


def run_trial(params: dict[str, Any], sweep: str, shared: dict[str, Any], environment: dict[str, str]) -> None:
    """Train with the parameters that Tune chose; each evaluation is reported to Tune, the last one from here.

    Args:
        params: dotted settings of this trial.
        sweep: name of the sweep.
        shared: settings of all trials, flattened.
        environment: of the program that the user started.

    Raises:
        UserError: if the run cannot be done; Tune records it and goes on with other trials.
    """
    # As brewclip.cluster.connect does for a driver; read when the trainer is built.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1.0")
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from brewclip.training.launch import prepare, run_training
    from brewclip.training.worker import report_of

    config = trial_config(shared, params, trial_run_name(sweep, ray.tune.get_context().get_trial_id()))
    prepare(config)
    result = run_training(config, environment=environment, callbacks=[TuneReportCallback()])
    ray.tune.report(report_of(result["step"], result["best"], config))
