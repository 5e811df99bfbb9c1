"""Tune callback: a line per trial event, records for resuming, and the final state of trials in MLflow."""

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback

from brewclip.errors import UserError
from tune.ledger import Ledger
from tune.options import SweepConfig
from tune.records import settle_trial
from tune.results import Outcome
from tune.trial import TRIAL, trial_run_name


class TrialWatch(Callback):
    """Prints trial events, records them for resuming, and closes the trials' runs in MLflow.

    Args:
        config: of the sweep.
        parent: the sweep's run in MLflow.
        ledger: record of the trials.
    """

    def __init__(self, config: SweepConfig, parent: str, ledger: Ledger) -> None:
        self.config, self.parent, self.ledger = config, parent, ledger

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        params = self._record_start(trial)
        settings = ", ".join(f"{name} {value}" for name, value in params.items())
        self._say(trial, f"starts: {settings}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        step, value = int(result["step"]), float(result[self.config.run.selection_metric])
        self.ledger.evaluate(trial.config[TRIAL], step, value)
        self._say(trial, f"at step {step}, best so far {value:.1f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        step = int((trial.last_result or {}).get("step", 0))
        self._end(trial, "finished" if step >= self.config.optim.total_steps else "stopped_early")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed", cause_of(_error_of(trial)))

    def _record_start(self, trial: Any) -> dict[str, Any]:
        """Record that a trial starts, and return its settings."""
        number, params = trial.config[TRIAL], {name: one for name, one in trial.config.items() if name != TRIAL}
        self.ledger.start(number, params)
        return params

    def _end(self, trial: Any, outcome: Outcome, problem: str = "") -> None:
        number = trial.config[TRIAL]
        if number not in self.ledger.read():  # its process could not be made
            self._record_start(trial)
        self.ledger.end(number, outcome, problem)
        row = self.ledger.read()[number].row(self.config.run_name, number)
        self._say(trial, outcome.replace("_", " ") + (f": {problem}" if problem else f" at step {row.step}"))
        settle_trial(self.config, self.parent, row, wait_seconds=10.0)

    def _say(self, trial: Any, what: str) -> None:
        sweep = self.config.run_name
        print(f"sweep {sweep}: trial {trial_run_name(sweep, trial.config[TRIAL])} {what}", flush=True)


def cause_of(error: BaseException) -> str:
    """Return the cause of a failed trial in one line: a `UserError` as its message, anything else with its type."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
    return (lines[0] if isinstance(cause, UserError) else f"{type(cause).__name__}: {lines[0]}")[:500]


def _error_of(trial: Any) -> BaseException:
    """Return the error of a Tune trial, which Ray has just written to this machine's private folder."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            return cloudpickle.load(file)
    except Exception:  # none was written, or its type cannot be built here
        text = Path(trial.error_file).read_text().strip() if trial.error_file else ""
        return RuntimeError(text.splitlines()[-1] if text else "no message")
