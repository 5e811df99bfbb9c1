"""One driver trains a run at a time, a killed one does not lock it for long, and a late one is fenced off."""

import threading
import time

import pytest

from brewclip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.training import lease
from brewclip.training.lease import holding_lease
from tests.training.test_checkpoint import checkpoint_at

LEFT = b'{"owner": "a lost machine", "beat": 7}'


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.6)


@pytest.fixture
def storage(tmp_path):
    return open_storage((tmp_path / "run").as_uri())


def test_a_second_driver_is_refused_while_the_first_one_lives(storage):
    with (
        holding_lease(storage, "one"),
        pytest.raises(UserError, match="run 'one' is being trained by another program"),
        holding_lease(storage, "one"),
    ):
        raise AssertionError("not reached")
    with holding_lease(storage, "one"):
        pass
    assert storage.list_names() == []


def test_what_a_killed_driver_left_is_taken_over(storage, capsys):
    storage.write("lease/00000004.json", LEFT)
    with holding_lease(storage, "one") as fence:
        assert fence.epoch == 5
        assert storage.list_names() == ["lease/00000005.json"]
    assert "checking whether its program is alive" in capsys.readouterr().out
    assert storage.list_names() == []


class IgnoresConditions:
    """A store that takes every conditional write, as rclone's server does."""

    def __init__(self, storage):
        self.storage = storage

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def create(self, name, data):
        self.storage.write(name, data)
        return True


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional writes", "ignored conditions"])
@pytest.mark.parametrize("gap_seconds", [0.0, 0.02, 0.05, 0.2, 0.5])
def test_of_two_drivers_exactly_one_holds_the_run(storage, gap_seconds, conditional):
    store = storage if conditional else IgnoresConditions(storage)
    results, ending = [], threading.Event()

    def drive():
        try:
            with holding_lease(store, "one") as fence:
                results.append(("held", fence.epoch))
                ending.wait(10)
        except UserError as error:
            results.append(("refused", str(error)))

    threads = [threading.Thread(target=drive) for _ in range(2)]
    threads[0].start()
    time.sleep(gap_seconds)
    threads[1].start()
    deadline = time.monotonic() + 10  # the refused one ends first
    while all(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    ending.set()
    for thread in threads:
        thread.join()
    assert sorted(what for what, _ in results) == ["held", "refused"], results
    assert storage.list_names() == []


def test_a_driver_that_was_stopped_for_long_writes_no_pointer_any_more(storage, monkeypatch):
    with holding_lease(storage, "one") as first:
        monkeypatch.setattr(lease.Fence, "is_held", lambda *_: False)  # its beats stop, as under SIGSTOP
        time.sleep(0.1)
        monkeypatch.undo()
        monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
        monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
        monkeypatch.setattr(lease, "STALE_SECONDS", 0.3)
        with holding_lease(storage, "one") as second:
            assert second.epoch == first.epoch + 1
            save_checkpoint(storage, checkpoint_at(20), best=True, keep=2, fence=lambda: second.check(storage))
            with pytest.raises(UserError, match="run 'one' was taken over by another program"):
                save_checkpoint(storage, checkpoint_at(90), best=True, keep=2, fence=lambda: first.check(storage))
            assert load_checkpoint(storage).facts.step == 20
            assert not first.is_held(storage)
            assert second.is_held(storage)
    assert not [name for name in storage.list_names() if name.startswith("lease/")]


def test_a_lease_that_says_nothing_is_waited_for_and_taken(storage):
    storage.write("lease/00000001.json", b"{")
    with holding_lease(storage, "one") as fence:
        assert fence.epoch == 2
