"""Record of a sweep's trials: one append-only JSONL file, from which a sweep is resumed and its results are made.

Ray Tune's own state is pickled, so a sweep is never restored from it: whoever can write to the bucket could run code.

Lines: {"trial", "params"} when a trial starts, {"trial", "step", "value"} for each evaluation, and {"trial", "outcome",
"problem"} when it ends.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from brewclip.config.ranges import show
from brewclip.errors import UserError
from tune.results import Outcome, TrialRow
from tune.spaces import Space, is_in_space
from tune.trial import trial_run_name

LEDGER = "trials.jsonl"
_UNFINISHED = "it did not end"
_REMEDY = "choose another --run.name, or start over with --run.fresh"


@dataclass(frozen=True)
class TrialRecord:
    """What is known of a trial.

    Attributes:
        params: its own settings.
        curve: best evaluation so far by step, in order.
        outcome: how it ended; None while it runs, or if it was interrupted.
        problem: why it failed, one line.
    """

    params: dict[str, Any]
    curve: dict[int, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    problem: str = ""

    @property
    def step(self) -> int:
        """Step of the last evaluation, 0 if there was none."""
        return max(self.curve, default=0)

    @property
    def best(self) -> float | None:
        """Best evaluation, None if there was none."""
        return self.curve[self.step] if self.curve else None

    def row(self, sweep: str, trial: str) -> TrialRow:
        """Return the trial as a row of the results; one that did not end has failed."""
        problem = self.problem if self.outcome is not None else _UNFINISHED
        outcome: Outcome = self.outcome or "failed"
        name = trial_run_name(sweep, trial)
        return TrialRow(name, self.params, outcome, self.step, self.best, problem, self.curve)


class Ledger:
    """The record of a sweep's trials in a folder.

    Args:
        folder: holds trials.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER

    def start(self, trial: str, params: dict[str, Any]) -> None:
        """Record that a trial starts, or starts again."""
        self._append({"trial": trial, "params": params})

    def evaluate(self, trial: str, step: int, value: float) -> None:
        """Record an evaluation."""
        self._append({"trial": trial, "step": step, "value": value})

    def end(self, trial: str, outcome: Outcome, problem: str = "") -> None:
        """Record how a trial ended."""
        self._append({"trial": trial, "outcome": outcome, "problem": problem})

    def resume(self, space: Space) -> dict[str, TrialRecord]:
        """Return the trials of before an interruption; their settings become command lines, so others are refused.

        Raises:
            UserError: if the record is damaged, or has settings that the space has not.
        """
        try:
            trials = self.read()
            problem = next(filter(None, (_problem_of(*one, space) for one in trials.items())), "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"it is damaged ({type(error).__name__})"
        if problem:
            raise UserError(f"{LEDGER} of the sweep cannot be resumed, {problem}: {_REMEDY}")
        return trials

    def read(self) -> dict[str, TrialRecord]:
        """Return all trials by number, in the order of their start; duplicate evaluations count once."""
        trials: dict[str, TrialRecord] = {}
        for line in self._lines():
            trial = line["trial"]
            if "params" in line:
                known = trials.get(trial, TrialRecord(line["params"]))
                trials[trial] = replace(known, params=line["params"], outcome=None, problem="")
            elif "step" in line:
                curve = trials[trial].curve | {line["step"]: line["value"]}
                trials[trial] = replace(trials[trial], curve=dict(sorted(curve.items())))
            else:
                trials[trial] = replace(trials[trial], outcome=line["outcome"], problem=line["problem"])
        return dict(sorted(trials.items()))

    def _append(self, record: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(record, default=lambda value: value.item()) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        """Return the records, without an incomplete last line."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def _problem_of(trial: str, record: TrialRecord, space: Space) -> str:
    """Return what is wrong with a trial of before, or an empty string."""
    if not re.fullmatch(r"[0-9]{5}", trial):
        return f"the trial {trial[:50]!r} is not named by five digits"
    others = set(dict(record.params)) ^ set(space)
    if others:
        return f"trial {trial} has other settings than the space: {', '.join(sorted(others))[:200]}"
    outside = next((name for name, value in record.params.items() if not is_in_space(value, space[name])), "")
    if outside:
        return f"trial {trial} has {outside} {show(record.params[outside])}, which is not in the space"
    numbers = [number for point in record.curve.items() for number in point]
    if not all(isinstance(number, int | float) for number in numbers):
        return f"trial {trial} has an evaluation that is no number"
    known = record.outcome is None or record.outcome in get_args(Outcome)
    return "" if known and isinstance(record.problem, str) else f"trial {trial} ended in an unknown way"
