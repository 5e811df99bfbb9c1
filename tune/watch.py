"""Tune callback: a line per trial event, records for a later restore, and the final state of trials in MLflow."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback

from brewclip.errors import UserError
from tune.options import SweepConfig
from tune.records import settle_trial
from tune.results import Outcome, TrialRow
from tune.state import append_problem, append_result, read_problems, read_results
from tune.trial import trial_run_name

_TRIALS = "trials.json"


class TrialWatch(Callback):
    """Prints trial events, records evaluations for a later restore, and closes the trials' runs in MLflow.

    Args:
        config: of the sweep.
        parent: the sweep's run in MLflow.
        folder: of the sweep's state.
    """

    def __init__(self, config: SweepConfig, parent: str, folder: Path) -> None:
        self.config, self.parent, self.folder = config, parent, folder

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        settings = ", ".join(f"{name} {value}" for name, value in trial.config.items())
        print(f"sweep {self.config.run_name}: trial {self._name(trial)} starts: {settings}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        step, value = int(result["step"]), float(result[self.config.run.selection_metric])
        append_result(self.folder, trial.trial_id, step, value)
        print(
            f"sweep {self.config.run_name}: trial {self._name(trial)} at step {step}, best so far {value:.1f}",
            flush=True,
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._settle(describe_trial(self.config, trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        problem = cause_of(_error_of(trial))
        append_problem(self.folder, trial.trial_id, problem)
        self._settle(describe_trial(self.config, trial, problem=problem))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        history, problems = read_results(self.folder), read_problems(self.folder)
        rows = [
            describe_trial(self.config, trial, history.get(trial.trial_id, {}), self._problem_of(trial, problems))
            for trial in trials
        ]
        (self.folder / _TRIALS).write_text(json.dumps([asdict(row) for row in rows]))

    def _problem_of(self, trial: Any, problems: dict[str, str]) -> str:
        return problems.get(trial.trial_id, "it failed, see the output") if trial.status == trial.ERROR else ""

    def _settle(self, row: TrialRow) -> None:
        what = row.outcome.replace("_", " ") + (f": {row.problem}" if row.problem else f" at step {row.step}")
        print(f"sweep {self.config.run_name}: trial {row.name} {what}", flush=True)
        settle_trial(self.config, self.parent, row, wait_seconds=10.0)

    def _name(self, trial: Any) -> str:
        return trial_run_name(self.config.run_name, trial.trial_id)


def read_trials(folder: Path) -> list[TrialRow]:
    """Return the trials as they were at the end of the sweep, in the order of their creation."""
    rows = [TrialRow(**row) for row in json.loads((folder / _TRIALS).read_text())]
    return [replace(row, curve={int(step): value for step, value in row.curve.items()}) for row in rows]


def describe_trial(
    config: SweepConfig, trial: Any, curve: dict[int, float] | None = None, problem: str = ""
) -> TrialRow:
    """Return the result of an ended Tune trial; with a problem it has failed."""
    last = trial.last_result or {}
    step = int(last.get("step", 0))
    outcome: Outcome = "failed" if problem else "finished" if step >= config.optim.total_steps else "stopped_early"
    return TrialRow(
        name=trial_run_name(config.run_name, trial.trial_id),
        params=json.loads(json.dumps(trial.config, default=lambda value: value.item())),
        outcome=outcome,
        step=step,
        best=last.get(config.run.selection_metric),
        problem=problem,
        curve=curve or {},
    )


def cause_of(error: BaseException) -> str:
    """Return the cause of a failed trial in one line: a `UserError` as its message, anything else with its type."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
    return (lines[0] if isinstance(cause, UserError) else f"{type(cause).__name__}: {lines[0]}")[:500]


def _error_of(trial: Any) -> BaseException:
    """Return the error of a Tune trial, from its local file, which reaches Tune's storage only later."""
    try:
        with open(trial.pickled_error_file, "rb") as file:
            return cloudpickle.load(file)
    except Exception:  # none was written, or its type cannot be built here
        text = Path(trial.error_file).read_text().strip() if trial.error_file else ""
        return RuntimeError(text.splitlines()[-1] if text else "no message")
