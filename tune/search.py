"""Searchers: which settings a trial gets, resumed from the record of earlier trials."""

import sys
from typing import Any, Protocol

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.concurrency_limiter import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from tune.ledger import TrialRecord
from tune.options import SweepConfig
from tune.spaces import Space, tune_space
from tune.trial import TRIAL, trial_number


class Draws(Protocol):
    """Settings for new trials."""

    def draw(self, number: int) -> dict[str, Any]:
        """Return the settings of the trial with this number."""

    def learn(self, number: int, params: dict[str, Any], value: float | None) -> None:
        """Take the best evaluation of an ended trial into account, None if it had none."""


class RandomDraws:
    """Random settings: a function of seed and number, so that resuming needs no state.

    Args:
        space: the search space.
        seed: of the sweep.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.domains, self.seed = tune_space(space), seed

    def draw(self, number: int) -> dict[str, Any]:
        """Return the settings of the trial with this number."""
        rng = np.random.default_rng((self.seed, number))
        return {name: domain.sample(random_state=rng) for name, domain in self.domains.items()}

    def learn(self, number: int, params: dict[str, Any], value: float | None) -> None:
        """Do nothing."""


class TpeDraws:
    """Settings by Optuna's tree-structured Parzen estimator.

    Args:
        space: the search space.
        seed: of the sweep; each trial is drawn with a seed of its own, so a resumed sweep repeats no draw.
    """

    def __init__(self, space: Space, seed: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.seed = optuna, seed
        self.distributions = OptunaSearch.convert_search_space(tune_space(space))
        self.study = optuna.create_study(direction="maximize")
        self.running: dict[int, Any] = {}

    def draw(self, number: int) -> dict[str, Any]:
        """Return the settings of the trial with this number."""
        (seed,) = np.random.SeedSequence((self.seed, number)).generate_state(1)
        self.study.sampler = self.optuna.samplers.TPESampler(seed=int(seed))
        self.running[number] = self.study.ask(fixed_distributions=self.distributions)
        return dict(self.running[number].params)

    def learn(self, number: int, params: dict[str, Any], value: float | None) -> None:
        """Take the best evaluation of an ended trial into account, None if it had none."""
        states = self.optuna.trial.TrialState
        state = states.COMPLETE if value is not None else states.FAIL
        trial = self.running.pop(number, None)
        if trial is not None:
            self.study.tell(trial, value, state=state)
        else:
            self.study.add_trial(
                self.optuna.create_trial(state=state, value=value, params=params, distributions=self.distributions)
            )


class SweepSearch(Searcher):
    """Gives trials their number and settings: first the interrupted ones of before, then new ones.

    Args:
        draws: settings of new trials.
        metric: evaluations, larger is better.
        num_trials: trials of the whole sweep, with those of before.
        before: trials of before.
    """

    def __init__(self, draws: Draws, metric: str, num_trials: int, before: dict[str, TrialRecord]) -> None:
        super().__init__(metric=metric, mode="max")
        self.draws = draws
        self.interrupted = [(trial, record.params) for trial, record in before.items() if record.outcome is None]
        # Trials start in any order, so numbers may be missing between those of before.
        self.unused = [number for number in range(num_trials) if trial_number(number) not in before]
        self.running: dict[str, tuple[int, dict[str, Any]]] = {}
        for trial, record in before.items():
            if record.outcome is not None:
                draws.learn(int(trial), record.params, None if record.outcome == "failed" else record.best)

    @property
    def num_left(self) -> int:
        """Number of trials that are still to run."""
        return len(self.interrupted) + len(self.unused)

    def suggest(self, trial_id: str) -> Any:
        """Return settings and number of the next trial, or that there is none."""
        if self.interrupted:
            trial, params = self.interrupted.pop(0)
        elif self.unused:
            number = self.unused.pop(0)
            trial, params = trial_number(number), self.draws.draw(number)
        else:
            return Searcher.FINISHED
        self.running[trial_id] = (int(trial), params)
        return params | {TRIAL: trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Let the draws learn from the trial."""
        number, params = self.running.pop(trial_id)
        self.draws.learn(number, params, None if error else (result or {}).get(self.metric))

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep is resumed from its record, never from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `save`."""


def build_search(config: SweepConfig, space: Space, before: dict[str, TrialRecord]) -> SweepSearch:
    """Return the searcher of a sweep; random with a warning if Optuna is not installed.

    Args:
        config: of the sweep.
        space: the search space.
        before: trials of before.
    """
    seed = config.run.seed
    draws: Draws = RandomDraws(space, seed)
    if config.sweep.search == "tpe":
        try:
            draws = TpeDraws(space, seed)
        except ImportError:
            print("warning: Optuna is not installed, settings are drawn at random: pip install optuna", file=sys.stderr)
    return SweepSearch(draws, config.run.selection_metric, config.sweep.num_trials, before)


def limit(search: SweepSearch, max_concurrent: int) -> SearchGenerator:
    """Return the searcher in Tune's terms, with at most so many trials in parallel."""
    return SearchGenerator(ConcurrencyLimiter(search, max_concurrent))
