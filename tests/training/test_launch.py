"""What the driver of a run does when it is asked to end."""

import os
import signal
import time

import pytest

from brewclip.config import Config, RunConfig
from brewclip.data.storage import exists, open_storage
from brewclip.errors import UserError
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
