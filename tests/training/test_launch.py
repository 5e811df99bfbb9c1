"""What the driver of a run does when it is asked to end, or to go on."""

import os
import signal
import time
from dataclasses import replace

import pytest

from brewclip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from brewclip.checkpoints.compatibility import check_same_run
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import Config, RunConfig, flatten
from brewclip.data.storage import exists, open_storage
from brewclip.errors import CheckpointError, UserError
from brewclip.training import launch
from brewclip.training.stop import STOP


@pytest.fixture
def config(tmp_path):
    return Config(storage=tmp_path.as_uri(), run=RunConfig(name="asked"))


def test_a_driver_whose_workers_wait_for_room_ends_at_once(config, monkeypatch):
    monkeypatch.setattr(launch, "has_workers", lambda: False)
    before = signal.getsignal(signal.SIGTERM)
    message = "'asked' was asked to end while its workers waited for room: submit it again"
    with pytest.raises(UserError, match=message), launch._stopping_on_sigterm(config):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not exists(open_storage(config.run_url), STOP), "no worker is there to read it"


def test_a_driver_with_workers_asks_them_to_stop(config, monkeypatch, capsys):
    monkeypatch.setattr(launch, "has_workers", lambda: True)
    with launch._stopping_on_sigterm(config):
        os.kill(os.getpid(), signal.SIGTERM)
    assert exists(open_storage(config.run_url), STOP)
    assert "writing a checkpoint" in capsys.readouterr().out


def test_ctrl_c_stays_ctrl_c(config):
    with pytest.raises(KeyboardInterrupt), launch._stopping_on_sigterm(config):
        raise KeyboardInterrupt


def test_a_run_goes_on_from_the_checkpoint_that_its_registered_name_stood_for(config, monkeypatch, capsys):
    """Also where the name stands for another one by then."""

    def resolved(config):
        latest = None if config.run.fresh else load_checkpoint(open_storage(config.run_url))
        return launch._with_checkpoint_url(config, latest)

    monkeypatch.setattr(launch, "prepare", resolved)
    meant = "file:///sweep/runs/first"
    monkeypatch.setattr(launch, "resolve_model", lambda name, uri: meant if name else "")
    named = replace(config, run=replace(config.run, init_from="models:/brewclip@best"))
    assert resolved(named).run.init_from == meant
    started = flatten(resolved(named))
    facts = CheckpointFacts(step=1, config=started, frozen_sha256={}, audio_dim=4)
    save_checkpoint(open_storage(config.run_url), Checkpoint(facts, {}, {}), best=True, keep=1)
    meant = "file:///sweep/runs/second"
    check_same_run(resolved(named), facts)
    with launch.claim_run(named):
        assert capsys.readouterr().out == "--run.init-from models:/brewclip@best stands for file:///sweep/runs/first\n"
    over = replace(named, run=replace(named.run, fresh=True))
    assert resolved(over).run.init_from == meant, "starting over, the name is read again"
    with pytest.raises(CheckpointError, match=r"with --run\.init-from file:///sweep/runs/first, now it is :"):
        check_same_run(resolved(config), facts)
