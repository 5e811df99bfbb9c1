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
START = '{"trial": "00000", "params": {"optim.peak_lr": 1e-3, "model.prompt_length": 4}}'
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
        ('{"trial": "00000", "params": {"optim.peak_lr": 5, "model.prompt_length": 4}}', "peak_lr 5, which is not in"),
        ('{"trial": "00000", "params": {"optim.peak_lr": 1e-3, "model.prompt_length": 3}}', "not in the space"),
        ('{"trial": "00000", "params": ["optim.peak_lr", "model.prompt_length"]}', "damaged"),
        ('{"trial": "\u0660\u0660\u0660\u0660\u0661", "params": {}}', "not named by five digits"),
        (f"{START}\n" + '{"trial": "00000", "outcome": "weird", "problem": ""}', "ended in an unknown way"),
        (f"{START}\n" + '{"trial": "00000", "step": 1, "value": "2"}', "an evaluation that is no number"),
        ('{"trial": "00000", "step": 1, "value": 2}', "damaged"),
        ("[1]", "damaged"),
        ("{", "damaged"),
        ('{"trial": 7, "params": {}}', "damaged"),
        ('{"trial": "00000", "params": 5}', "damaged"),
    ],
    ids=[
        *("path", "foreign setting", "outside the range", "no choice", "settings in a list", "other digits"),
        *("outcome", "value", "no start", "list", "no JSON", "number", "no settings"),
    ],
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


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_numbers_that_were_drawn_and_never_started_are_drawn_again(kind):
    """Trials in parallel start in any order: here 00000 had not when the sweep was killed."""
    from tune.search import build_search

    config = sweep_config(search=kind, num_trials=4)
    params = {"optim.peak_lr": 1e-3, "model.prompt_length": 4}
    before = {"00001": TrialRecord(params), "00002": ended({20: 1.0}, **params)}
    search = build_search(config, SPACE, before)
    assert search.num_left == 3
    assert [one[TRIAL] for one in suggestions(search, 3)] == ["00001", "00000", "00003"]
    more = build_search(
        sweep_config(search=kind, num_trials=6), SPACE, {f"{n:05d}": ended({}, **params) for n in range(4)}
    )
    assert [one[TRIAL] for one in suggestions(more, 2)] == ["00004", "00005"], "a sweep that is over goes on with more"


def test_a_trial_that_failed_late_is_no_good_example_for_tpe():
    from tune.search import build_search

    params = {"optim.peak_lr": 1e-3, "model.prompt_length": 4}
    failed = TrialRecord(params, {20: 60.0}, "failed", "no room")
    search = build_search(sweep_config(search="tpe"), SPACE, {"00000": failed})
    assert search.draws.study.trials[0].value is None


def test_a_trial_whose_process_could_not_be_made_is_recorded(tmp_path, capsys):
    from tune.watch import TrialWatch

    ledger = Ledger(tmp_path)
    watch = TrialWatch(replace(sweep_config(), storage=tmp_path.as_uri()), "", ledger)
    trial = SimpleNamespace(
        config={TRIAL: "00000", "optim.peak_lr": 1e-3}, pickled_error_file=None, error_file="", last_result=None
    )
    watch.on_trial_error(0, [], trial)
    assert ledger.read()["00000"] == TrialRecord({"optim.peak_lr": 1e-3}, {}, "failed", "RuntimeError: no message")
    assert "00000 failed" in capsys.readouterr().out


def test_a_record_is_not_copied_over_that_of_another_program(tmp_path):
    storage = open_storage((tmp_path / "storage").as_uri())

    def taken() -> None:
        raise UserError("taken over")

    (tmp_path / "trials.jsonl").write_text(f"{START}\n")
    mirror = FileMirror(storage, tmp_path / "trials.jsonl", check=taken)
    with pytest.raises(UserError, match="taken over"):
        mirror.copy()
    assert storage.list_names() == []


@pytest.fixture
def claimable(tmp_path, monkeypatch):
    """Settings of a sweep with data, and with a lease that is taken at once."""
    from brewclip.training import lease
    from tests.training.features import write_features

    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    config = sweep_config(num_trials=2)
    config = replace(config, storage=tmp_path.as_uri(), run=replace(config.run, name="one", global_batch_size=8))
    config = replace(
        config, optim=replace(config.optim, warmup_steps=1), cluster=replace(config.cluster, num_workers=1)
    )
    for split in ("train", "dev"):
        write_features(config.features_url, split, 8)
    return config


def test_a_sweep_is_run_by_one_program_and_continued_with_more_trials(claimable):
    from tune.sweep import claim_sweep

    with (
        claim_sweep(claimable, SPACE),
        pytest.raises(UserError, match="by another program"),
        claim_sweep(claimable, SPACE),
    ):
        raise AssertionError("not reached")
    more = replace(claimable, sweep=replace(claimable.sweep, num_trials=5, max_concurrent=1))
    with claim_sweep(more, SPACE):
        pass
    with (
        pytest.raises(UserError, match=r"was started with --sweep.scheduler asha"),
        claim_sweep(replace(claimable, sweep=replace(claimable.sweep, scheduler="median")), SPACE),
    ):
        raise AssertionError("not reached")


def test_starting_over_may_be_interrupted_after_any_operation(claimable, monkeypatch, capsys):
    from brewclip.data.folder_storage import FolderStorage
    from tune.sweep import claim_sweep

    names = ["sweeps/one/trials.jsonl", "sweeps/one/trials.csv", "runs/one-00000/checkpoints/latest"]
    storage, fresh = open_storage(claimable.storage), replace(claimable, run=replace(claimable.run, fresh=True))
    original, allowed = FolderStorage.delete, [0]

    def delete(self: FolderStorage, name: str) -> None:
        if not name.startswith("lease/"):
            allowed[0] -= 1
            if allowed[0] < 0:
                raise KeyboardInterrupt
        original(self, name)

    for stop_after in range(6):
        with claim_sweep(fresh, SPACE):  # a whole earlier sweep
            for name in names:
                storage.write(name, b"old")
        allowed[0] = stop_after
        monkeypatch.setattr(FolderStorage, "delete", delete)
        try:
            with claim_sweep(fresh, SPACE):
                pass
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        monkeypatch.setattr(FolderStorage, "delete", original)
        capsys.readouterr()
        with claim_sweep(claimable, SPACE):
            left = [name for name in storage.list_names() if name in names]
        assert left == [], f"interrupted after {stop_after} removals"
        assert ("starting over was interrupted" in capsys.readouterr().out) == interrupted
    assert not interrupted, "all operations were tried"


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


def test_median_stopping_takes_any_order_of_trials_of_before():
    """Replayed in another order than they reported in, trials may look weak that were not; they are over."""
    from ray.tune.schedulers import TrialScheduler

    from tune.schedulers import build_scheduler

    before = {f"0000{number}": ended({20: value, 40: value}) for number, value in enumerate((30.0, 20.0, 25.0, 10.0))}
    before["00004"] = TrialRecord({}, {20: 5.0, 40: 5.0})
    scheduler = build_scheduler(sweep_config(scheduler="median"), before)
    controller = SimpleNamespace(get_live_trials=list)
    weak, good = _Trial("00004"), _Trial("00005")
    for trial in (weak, good):
        scheduler.on_trial_add(controller, trial)
    decide = lambda trial, value: scheduler.on_trial_result(controller, trial, {"step": 60, METRIC: value})  # noqa: E731
    assert decide(weak, 5.0) == TrialScheduler.STOP, "decided before the interruption, and not carried out"
    assert decide(good, 40.0) == TrialScheduler.CONTINUE


def test_asha_stops_a_trial_that_was_to_be_stopped_when_the_sweep_was_interrupted():
    from ray.tune.schedulers import TrialScheduler

    from tune.schedulers import build_scheduler

    before = {"00000": ended({20: 20.0}), "00001": ended({20: 30.0}), "00002": TrialRecord({}, {20: 1.0})}
    scheduler = build_scheduler(sweep_config(scheduler="asha"), before)
    weak = _Trial("00002")
    scheduler.on_trial_add(None, weak)
    assert scheduler.on_trial_result(None, weak, {"step": 25, METRIC: 1.0}) == TrialScheduler.STOP


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
