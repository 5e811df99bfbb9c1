"""Ray Tune's schedulers by the names of the settings, resumed from the record of earlier trials."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tune.ledger import TrialRecord
from tune.options import SweepConfig
from tune.trial import TRIAL


class _Past(SimpleNamespace):
    """A trial of before, as far as schedulers know one."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class _Remembering:
    """Replays the reports of trials of before an interruption to a scheduler.

    Decisions on ended trials were carried out then. One to stop an interrupted trial is carried out at its next report.
    """

    before: dict[str, TrialRecord]
    due: set[str]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        ended = [name for name, record in self.before.items() if record.outcome is not None]
        for name in ended:
            past = _Past(trial_id=f"before-{name}", config={TRIAL: name})
            super().on_trial_add(tune_controller, past)  # type: ignore[misc]
            self._replay(tune_controller, past)
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        if self._replay(tune_controller, trial) == TrialScheduler.STOP:
            self.due.add(trial.config[TRIAL])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        return TrialScheduler.STOP if trial.config[TRIAL] in self.due else decision

    def _replay(self, tune_controller: Any, trial: Any) -> str:
        """Replay the reports of a trial and return the last decision."""
        record, decision = self.before.pop(trial.config[TRIAL], None), TrialScheduler.CONTINUE
        for step, value in record.curve.items() if record is not None else ():
            report = {"step": step, self._metric: value}  # type: ignore[attr-defined]
            decision = super().on_trial_result(tune_controller, trial, report)  # type: ignore[misc]
            self._forget_stop(trial)
        return decision

    def _forget_stop(self, trial: Any) -> None:
        """Let a trial report again that the scheduler takes for stopped."""


class RememberingASHA(_Remembering, AsyncHyperBandScheduler):
    """ASHA that resumes with its rungs."""


class RememberingMedian(_Remembering, MedianStoppingRule):
    """Median stopping that resumes with the reported curves."""

    def _forget_stop(self, trial: Any) -> None:
        self._stopped_trials.discard(trial)


def build_scheduler(config: SweepConfig, before: dict[str, TrialRecord]) -> TrialScheduler:
    """Return the scheduler of a sweep; it compares best evaluations so far, from the first evaluation on.

    Args:
        config: of the sweep.
        before: trials of before an interruption.
    """
    every, total = config.run.eval_every_steps, config.optim.total_steps
    scheduler: Any
    if config.sweep.scheduler == "asha":
        scheduler = RememberingASHA(
            time_attr="step", metric=config.run.selection_metric, mode="max", grace_period=min(every, total),
            max_t=total, reduction_factor=config.sweep.reduction_factor,
        )  # fmt: skip
    elif config.sweep.scheduler == "median":
        scheduler = RememberingMedian(
            time_attr="step", metric=config.run.selection_metric, mode="max", grace_period=min(every, total)
        )
    else:
        return FIFOScheduler()
    scheduler.before, scheduler.due = dict(before), set()
    return scheduler
