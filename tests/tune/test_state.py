"""A sweep is resumed from its own record on another machine, as if it had never been interrupted."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from brewclip.config import preset
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from tune.ledger import Ledger, TrialRecord
from tune.options import SweepConfig, SweepOptions, check_options
from tune.spaces import Space
from tune.state import FileMirror
from tune.trial import TRIAL

METRIC = "dev/speech_to_image/R1"
SPACE: Space = {"optim.peak_lr": ("log_uniform", 1e-5, 1e-2), "model.prompt_length": [0, 4, 8]}


def sweep_config(**options) -> SweepConfig:
    scenes = preset("scenes")
    config = SweepConfig(**vars(scenes), sweep=SweepOptions(**options))
    return replace(
        config,
        optim=replace(config.optim, total_steps=80),
        run=replace(config.run, eval_every_steps=20, selection_metric=METRIC),
    )


def ended(curve: dict[int, float], **params) -> TrialRecord:
    return TrialRecord(params, curve, "stopped_early")


def test_what_one_machine_wrote_another_one_finds(tmp_path):
    storage = open_storage((tmp_path / "storage").as_uri())
    first, second = Ledger(tmp_path / "first"), Ledger(tmp_path / "second")
    for ledger in (first, second):
        ledger.path.parent.mkdir()
    mirror = FileMirror(storage, first.path, every_seconds=0.05)
    mirror.fetch()
    mirror.start()
    first.start("00000", {"optim.peak_lr": 1e-3})
    first.evaluate("00000", 20, 1.0)
    mirror.close()
    storage.write("trials.jsonl", storage.read("trials.jsonl") + b'{"trial": "00001", "par')  # copied inside a line
    other = FileMirror(storage, second.path)
    other.fetch()
    assert second.read() == {"00000": TrialRecord({"optim.peak_lr": 1e-3}, {20: 1.0})}
    second.evaluate("00000", 40, 2.0)
    other.copy()
    assert [json.loads(line)["trial"] for line in storage.read("trials.jsonl").splitlines()] == ["00000"] * 3


def test_the_record_of_a_trial(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.start("00001", {"a": 1})
    for step, value in ((40, 3.0), (20, 1.0), (20, 2.0)):
        ledger.evaluate("00001", step, value)
    ledger.start("00000", {"a": 2})
    ledger.end("00000", "failed", "no room")
    ledger.start("00001", {"a": 1})  # resumed
    assert list(ledger.read()) == ["00000", "00001"]
    one = ledger.read()["00001"]
    assert (one.curve, one.step, one.best, one.outcome) == ({20: 2.0, 40: 3.0}, 40, 3.0, None)
    rows = [record.row("s", trial) for trial, record in ledger.read().items()]
    assert [(row.name, row.outcome, row.problem) for row in rows] == [
        ("s-00000", "failed", "no room"),
        ("s-00001", "failed", "it did not end"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"trial": "../../x", "params": {"optim.peak_lr": 1, "model.prompt_length": 4}}', "not named by five digits"),
        (
            '{"trial": "00000", "params": {"storage": "s3://other", "optim.peak_lr": 1}}',
            "other settings than the space: ",
        ),
        ('{"trial": "00000", "step": 1, "value": 2}', "damaged"),
        ("[1]", "damaged"),
        ("{", "damaged"),
        ('{"trial": 7, "params": {}}', "damaged"),
        ('{"trial": "00000", "params": 5}', "damaged"),
    ],
    ids=["path", "foreign setting", "no start", "list", "no JSON", "number", "no settings"],
)
def test_a_record_that_others_wrote_is_refused(tmp_path, line, message):
    (tmp_path / "trials.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message) as caught:
        Ledger(tmp_path).resume(SPACE)
    assert "--run.fresh" in str(caught.value) and "\n" not in str(caught.value)


def test_only_trials_of_the_sweep_are_removed_with_it():
    from tune.trial import is_trial_of

    names = ("a-00001/checkpoints/best", "a-3fa9c1d2/stop", "a-pipeline-0/stop", "a-00001-again/stop", "b-00001/stop")
    assert [is_trial_of("a", name) for name in names] == [True, True, False, False, False]


def suggestions(search, count: int) -> list:
    return [search.suggest(str(number)) for number in range(count)]


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_an_interrupted_search_draws_what_is_left(kind):
    from ray.tune.search import Searcher

    from tune.search import build_search

    config = sweep_config(search=kind, num_trials=4)
    whole = suggestions(build_search(config, SPACE, {}), 5)
    assert [one[TRIAL] for one in whole[:4]] == ["00000", "00001", "00002", "00003"] and whole[4] == Searcher.FINISHED
    params = [{name: one[name] for name in SPACE} for one in whole[:4]]
    assert len({one["optim.peak_lr"] for one in params}) == 4
    before = {"00000": ended({20: 50.0}, **params[0]), "00001": TrialRecord(params[1])}
    search = build_search(config, SPACE, before)
    assert search.num_left == 3
    rest = suggestions(search, 4)
    assert [one[TRIAL] for one in rest[:3]] == ["00001", "00002", "00003"] and rest[3] == Searcher.FINISHED
    assert rest[0] == params[1] | {TRIAL: "00001"}, "the interrupted trial keeps its settings"
    if kind == "random":
        assert rest[1:3] == whole[2:4], "a function of seed and number"
    assert len({one["optim.peak_lr"] for one in [params[0], *rest[:3]]}) == 4, "no draw is repeated"


def test_tpe_learns_from_trials_of_before():
    from tune.search import build_search

    before = {
        f"{number:05d}": ended({20: float(-number)}, **{"optim.peak_lr": 1e-5 * 1.4**number, "model.prompt_length": 4})
        for number in range(20)
    }
    before["00020"] = TrialRecord({"optim.peak_lr": 9e-3, "model.prompt_length": 8}, {}, "failed", "no room")
    search = build_search(sweep_config(search="tpe", num_trials=31), SPACE, before)
    drawn = [one["optim.peak_lr"] for one in suggestions(search, 10)]
    assert sorted(drawn)[5] < 1e-4, "small rates were best"
    search.on_trial_complete("0", {METRIC: 60.0})
    search.on_trial_complete("1", None, error=True)
    assert [trial.value for trial in search.draws.study.trials[21:23]] == [60.0, None]


def test_asha_remembers_its_rungs():
    """Halving at step 20: after 10 and 20 the threshold is 15, so 14 is stopped and 16 continues, restored or not."""
    from ray.tune.schedulers import TrialScheduler

    from tune.schedulers import build_scheduler

    before = {"00000": ended({20: 10.0}), "00001": TrialRecord({}, {20: 20.0})}
    scheduler = build_scheduler(sweep_config(scheduler="asha"), before)
    trials = {name: _Trial(name) for name in ("00001", "00002", "00003")}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    decide = lambda name, value: scheduler.on_trial_result(None, trials[name], {"step": 20, METRIC: value})  # noqa: E731
    assert decide("00002", 14.0) == TrialScheduler.STOP
    assert decide("00003", 16.0) == TrialScheduler.CONTINUE


def test_median_stopping_remembers_the_curves():
    from ray.tune.schedulers import TrialScheduler

    from tune.schedulers import build_scheduler

    before = {f"0000{number}": ended({20: value, 40: value}) for number, value in enumerate((10.0, 20.0, 30.0))}
    scheduler = build_scheduler(sweep_config(scheduler="median"), before)
    controller = SimpleNamespace(get_live_trials=list)
    trials = {name: _Trial(name) for name in ("00003", "00004")}
    for trial in trials.values():
        scheduler.on_trial_add(controller, trial)
    decide = lambda name, value: scheduler.on_trial_result(controller, trials[name], {"step": 40, METRIC: value})  # noqa: E731
    assert decide("00003", 19.0) == TrialScheduler.STOP
    assert decide("00004", 25.0) == TrialScheduler.CONTINUE


class _Trial:
    """The part of Tune's trial that a scheduler uses: hashable, with an id."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config = name, {TRIAL: name}


def test_settings_that_cannot_be_swept_are_refused():
    with pytest.raises(UserError, match=r"--sweep\.scheduler pbt does not fit"):
        check_options(sweep_config(scheduler="pbt"))


def test_without_optuna_settings_are_drawn_at_random(monkeypatch, capsys):
    import sys

    from tune.search import RandomDraws, build_search

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert isinstance(build_search(sweep_config(search="tpe"), SPACE, {}).draws, RandomDraws)
    assert "warning: Optuna is not installed" in capsys.readouterr().err
