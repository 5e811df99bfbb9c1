"""Two programs never train the same run at once, and a killed one does not lock the run for long."""

import pytest

from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.training import lease
from brewclip.training.lease import LEASE, check_free, holding_lease


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)


@pytest.fixture
def storage(tmp_path):
    return open_storage((tmp_path / "run").as_uri())


def test_a_second_program_is_refused_while_the_first_one_lives(storage):
    with holding_lease(storage, "one"), pytest.raises(UserError, match="run 'one' is being trained by another program"):
        check_free(storage, "one")
    check_free(storage, "one")
    assert storage.list_names() == []


def test_what_a_killed_program_left_is_taken_over(storage, capsys):
    storage.write(LEASE, b'{"owner": "a lost machine", "beat": 7}')
    check_free(storage, "one")
    assert "looking whether its program lives" in capsys.readouterr().out
    with holding_lease(storage, "one"):
        assert storage.list_names() == [LEASE]
    assert storage.list_names() == []


def test_of_two_that_begin_in_the_same_moment_one_is_refused(storage, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: storage.write(LEASE, b'{"owner": "the other one", "beat": 0}'))
    with pytest.raises(UserError, match="the other one"), holding_lease(storage, "one"):
        raise AssertionError("not reached")
