"""The state of a sweep is restored on another machine, and the schedulers resume as if never interrupted."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from brewclip.config import preset
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from tune.options import SweepConfig, SweepOptions, check_options
from tune.state import StateMirror, append_result, read_results


def sweep_config(**options) -> SweepConfig:
    scenes = preset("scenes")
    config = SweepConfig(**vars(scenes), sweep=SweepOptions(**options))
    return replace(
        config,
        optim=replace(config.optim, total_steps=80),
        run=replace(config.run, eval_every_steps=20, selection_metric="dev/speech_to_image/R1"),
    )


def test_what_one_machine_wrote_another_one_finds(tmp_path):
    storage = open_storage((tmp_path / "storage").as_uri())
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "experiment").mkdir(parents=True)
    (first / "experiment" / "state.json").write_text("{}")
    mirror = StateMirror(storage, first, every_seconds=0.05)
    mirror.start()
    append_result(first, "a", 20, 1.0)
    mirror.close()
    StateMirror(storage, second).fetch()
    assert (second / "experiment" / "state.json").read_text() == "{}"
    assert read_results(second) == {"a": {20: 1.0}}


def test_a_file_that_is_being_written_waits(tmp_path):
    storage = open_storage((tmp_path / "storage").as_uri())
    folder = tmp_path / "folder"
    folder.mkdir()
    mirror = StateMirror(storage, folder)
    (folder / "old.json").write_text("{}")
    os.utime(folder / "old.json", (time.time() - 60,) * 2)
    (folder / "new.json").write_text("{")
    mirror.copy()
    assert storage.list_names() == ["old.json"]
    mirror.copy(settled_seconds=0.0)
    assert storage.list_names() == ["new.json", "old.json"]


def test_an_evaluation_that_came_twice_counts_once(tmp_path):
    for step, value in ((40, 3.0), (20, 1.0), (20, 2.0)):
        append_result(tmp_path, "a", step, value)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"trial": "b", "st')  # a copy that was made in the middle of a line
    assert read_results(tmp_path) == {"a": {20: 2.0, 40: 3.0}}


def test_only_trials_of_the_sweep_are_removed_with_it():
    from tune.trial import is_trial_of

    names = ("a-00001/checkpoints/best", "a-3fa9c1d2/stop", "a-pipeline-0/stop", "a-00001-again/stop", "b-00001/stop")
    assert [is_trial_of("a", name) for name in names] == [True, True, False, False, False]


def test_asha_remembers_its_rungs():
    """Halving at step 20: after 10 and 20 the threshold is 15, so 14 is stopped and 16 continues, restored or not."""
    from ray.tune.schedulers import TrialScheduler

    from tune.schedulers import build_scheduler

    metric = "dev/speech_to_image/R1"
    scheduler = build_scheduler(sweep_config(scheduler="asha"), {"a": {20: 10.0}, "b": {20: 20.0}})
    trials = {name: SimpleNamespace(trial_id=name) for name in "abcd"}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    decide = lambda name, value: scheduler.on_trial_result(None, trials[name], {"step": 20, metric: value})  # noqa: E731
    assert decide("c", 14.0) == TrialScheduler.STOP
    assert decide("d", 16.0) == TrialScheduler.CONTINUE


def test_median_stopping_remembers_the_curves():
    from ray.tune.schedulers import TrialScheduler

    from tune.schedulers import build_scheduler

    history = {name: {20: value, 40: value} for name, value in (("a", 10.0), ("b", 20.0), ("c", 30.0))}
    scheduler = build_scheduler(sweep_config(scheduler="median"), history)
    controller = SimpleNamespace(get_live_trials=list)
    trials = {name: _Trial(name) for name in "abcde"}
    for trial in trials.values():
        scheduler.on_trial_add(controller, trial)
    decide = lambda name, value: scheduler.on_trial_result(  # noqa: E731
        controller, trials[name], {"step": 40, "dev/speech_to_image/R1": value}
    )
    assert decide("d", 19.0) == TrialScheduler.STOP
    assert decide("e", 25.0) == TrialScheduler.CONTINUE


class _Trial:
    """The part of Tune's trial that a scheduler uses: hashable, with an id."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


def test_settings_that_cannot_be_swept_are_refused():
    with pytest.raises(UserError, match=r"--sweep\.scheduler pbt does not fit"):
        check_options(sweep_config(scheduler="pbt"))


def test_without_optuna_settings_are_drawn_at_random(monkeypatch, capsys):
    import sys

    from ray.tune.search.basic_variant import BasicVariantGenerator

    from tune.schedulers import build_search

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert isinstance(build_search(sweep_config(search="tpe"), 2), BasicVariantGenerator)
    assert "warning: Optuna is not installed" in capsys.readouterr().err
