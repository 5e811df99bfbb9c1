"""Ray Tune's schedulers and searchers by the names of the settings; schedulers are restored with a sweep."""

import sys
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.concurrency_limiter import ConcurrencyLimiter
from ray.tune.search.search_algorithm import SearchAlgorithm
from ray.tune.search.search_generator import SearchGenerator

from tune.options import SweepConfig
from tune.spaces import Space

# Evaluations by trial id and step.
History = dict[str, dict[int, float]]


class _Remembering:
    """Replays to a scheduler, which Tune does not restore, the reports of trials from before an interruption."""

    history: History

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        for step, value in self.history.get(trial.trial_id, {}).items():
            # Its decision was carried out then.
            super().on_trial_result(tune_controller, trial, {"step": step, self._metric: value})  # type: ignore[misc,attr-defined]


class RememberingASHA(_Remembering, AsyncHyperBandScheduler):
    """ASHA that resumes with its rungs."""


class RememberingMedian(_Remembering, MedianStoppingRule):
    """Median stopping that resumes with the reported curves."""


def build_scheduler(config: SweepConfig, history: History) -> TrialScheduler:
    """Return the scheduler of a sweep; it compares best evaluations so far, from the first evaluation on.

    Args:
        config: of the sweep.
        history: reports of trials from before an interruption.
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
    scheduler.history = history
    return scheduler


def build_search(config: SweepConfig, max_concurrent: int) -> SearchAlgorithm:
    """Return the searcher of a sweep; random with a warning if Optuna is not installed.

    Args:
        config: of the sweep.
        max_concurrent: maximum parallel trials.
    """
    if config.sweep.search == "tpe":
        try:
            import optuna
        except ImportError:
            print("warning: Optuna is not installed, settings are drawn at random: pip install optuna", file=sys.stderr)
        else:
            from ray.tune.search.optuna import OptunaSearch

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            searcher = OptunaSearch(metric=config.run.selection_metric, mode="max", seed=config.run.seed)
            return SearchGenerator(ConcurrencyLimiter(searcher, max_concurrent))
    return BasicVariantGenerator(max_concurrent=max_concurrent, random_state=config.run.seed)


def tune_space(space: Space) -> dict[str, Any]:
    """Return a space in Tune's terms."""
    forms = {"log_uniform": tune.loguniform, "uniform": tune.uniform}
    domains = {}
    for field, values in space.items():
        if isinstance(values, list):
            domains[field] = tune.choice(values)
        elif values[0] == "integers":
            domains[field] = tune.randint(values[1], values[2] + 1)
        else:
            domains[field] = forms[values[0]](values[1], values[2])
    return domains
