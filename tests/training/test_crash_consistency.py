"""A run's checkpoints through interruptions at every operation, and through damage to what points at them."""

import pytest
import torch

from brewclip.checkpoints.checkpoint import load_checkpoint, load_resume_point, open_checkpoint, save_checkpoint
from brewclip.checkpoints.removal import finish_removal, is_being_removed, remove_checkpoints
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.storage import open_storage
from brewclip.errors import CheckpointError, ObjectMissing, UserError
from tests.training.test_checkpoint import checkpoint_at

OLD_STEPS = (80, 90, 100)


class Interrupted(BaseException):
    """Stands for the end of the process."""


class FailingStorage(FolderStorage):
    """Ends the process before operation number `left`."""

    def __init__(self, folder, left):
        super().__init__(folder)
        self.left = left

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise Interrupted

    def read(self, name):
        self._count()
        return super().read(name)

    def read_part(self, name, start, stop):
        self._count()
        return super().read_part(name, start, stop)

    def write(self, name, data):
        self._count()
        super().write(name, data)

    def list_names(self, prefix=""):
        self._count()
        return super().list_names(prefix)

    def delete(self, name):
        self._count()
        super().delete(name)


def old_run(folder):
    storage = FolderStorage(folder)
    for step in OLD_STEPS:
        save_checkpoint(storage, checkpoint_at(step), best=step == 90, keep=2)
    return storage


def begin_again(storage):
    """Start a run as `prepare` does, without --run.fresh."""
    if is_being_removed(storage):
        finish_removal(storage)
    return load_resume_point(storage)


def interruptions(tmp_path, operate):
    """Yield the storage of an old run after `operate` was interrupted after 0, 1, ... operations."""
    for number in range(1000):
        folder = tmp_path / str(number)
        storage = old_run(folder)
        try:
            operate(FailingStorage(folder, number))
        except Interrupted:
            yield storage
        else:
            assert number > 5
            return
    raise AssertionError("it does not end")


def test_starting_over_may_be_interrupted_anywhere(tmp_path):
    """The old run goes on whole, or the new one keeps each checkpoint and resumes from it."""
    begun = []
    for storage in interruptions(tmp_path, remove_checkpoints):
        resumed = begin_again(storage)
        begun.append(resumed is None)
        if resumed is not None:
            assert resumed.facts.step == 100
            assert load_checkpoint(storage, "best").facts.step == 90
            continue
        assert storage.list_names() == []
        for step in (4, 8, 12):
            save_checkpoint(storage, checkpoint_at(step), best=step == 4, keep=1)
            assert begin_again(storage).facts.step == step
            assert load_checkpoint(storage, "best").facts.step == 4
    assert begun == sorted(begun), "once it begins anew it stays so"
    assert set(begun) == {False, True}


def test_finishing_may_be_interrupted_too(tmp_path):
    for storage in interruptions(tmp_path, remove_checkpoints):
        if not is_being_removed(storage):
            continue
        for number in range(100):
            try:
                finish_removal(FailingStorage(storage.folder, number))
                break
            except Interrupted:
                assert load_checkpoint(storage) is None or load_checkpoint(storage).facts.step == 100
        assert storage.list_names() == []


def test_saving_and_pruning_may_be_interrupted_anywhere(tmp_path):
    def save(storage):
        save_checkpoint(storage, checkpoint_at(110), best=True, keep=1)

    for storage in interruptions(tmp_path, save):
        best = load_checkpoint(storage, "best").facts.step
        resumed = begin_again(storage).facts.step
        assert (resumed, best) in {(100, 90), (100, 110), (110, 110)}
        save_checkpoint(storage, checkpoint_at(110), best=True, keep=1)
        assert load_checkpoint(storage, "best").facts.step == load_checkpoint(storage).facts.step == 110
        assert {name.split("/")[1] for name in storage.list_names("checkpoints/step-")} == {"step-00000110"}


def test_what_an_older_version_left_of_starting_over_does_not_take_the_place_of_new_checkpoints(tmp_path):
    """It removed the pointers first: tensors of high numbers remain, without json."""
    storage = old_run(tmp_path)
    for name in storage.list_names():
        if not name.endswith("safetensors"):
            storage.delete(name)
    assert begin_again(storage) is None
    for step in (4, 8):
        save_checkpoint(storage, checkpoint_at(step), best=False, keep=1)
        assert begin_again(storage).facts.step == step


DAMAGE = {
    "empty": b"",
    "noise": b"\xff\xfe\x00",
    "dangling": b"step-00000500",
    "outside": b"../../other/checkpoints/step-00000001",
    "long": b"step-" + b"0" * 10**6,
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_latest_gives_the_newest_whole_checkpoint_with_a_line(tmp_path, capsys, damage):
    storage = old_run(tmp_path)
    if DAMAGE[damage] is None:
        storage.delete("checkpoints/latest")
    else:
        storage.write("checkpoints/latest", DAMAGE[damage])
    resumed = load_resume_point(storage)
    assert resumed.facts.step == 100
    assert torch.equal(resumed.model["w"], checkpoint_at(100).model["w"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-00000100 is the newest whole checkpoint and is used" in line
    assert "latest" in line
    assert load_resume_point(storage).facts.step == 100
    assert capsys.readouterr().err == "", "it is reported once"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("data", [b"", b"half", None])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, file, data):
    storage = old_run(tmp_path)
    name = f"checkpoints/step-00000100/{file}"
    storage.delete(name) if data is None else storage.write(name, data)
    assert load_resume_point(storage).facts.step == 90
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-00000100" in line
    assert "step-00000090 is the newest whole checkpoint and is used" in line
    save_checkpoint(storage, checkpoint_at(95), best=False, keep=1)
    save_checkpoint(storage, checkpoint_at(100), best=False, keep=1)
    assert load_resume_point(storage).facts.step == 100


@pytest.mark.parametrize("pointer", [b"step-00000100", b"", None])
def test_without_a_whole_one_nothing_starts_over_silently(tmp_path, pointer):
    storage = old_run(tmp_path)
    for name in storage.list_names("checkpoints/step-"):
        if name.endswith("model.safetensors"):
            storage.write(name, b"damaged")
    storage.delete("checkpoints/latest") if pointer is None else storage.write("checkpoints/latest", pointer)
    with pytest.raises(CheckpointError, match=r"none is whole: start over with --run\.fresh"):
        load_resume_point(storage)
    remove_checkpoints(storage)
    assert load_resume_point(storage) is None


def test_pointers_without_checkpoints_are_a_run(tmp_path):
    storage = open_storage(tmp_path.as_uri())
    storage.write("checkpoints/latest", b"step-00000100")
    with pytest.raises(CheckpointError, match=r"--run\.fresh"):
        load_resume_point(storage)


@pytest.mark.parametrize("name", ["latest", "step-00000100/checkpoint.json", "best"])
def test_a_momentary_404_is_not_no_checkpoint(tmp_path, monkeypatch, name):
    storage, missing = old_run(tmp_path), [f"checkpoints/{name}"]
    read_part = storage.read_part

    def once(asked, start, stop):
        if asked in missing:
            missing.remove(asked)
            raise ObjectMissing(f"{asked} does not exist")
        return read_part(asked, start, stop)

    monkeypatch.setattr(storage, "read_part", once)
    which, step = ("best", 90) if name == "best" else ("latest", 100)
    assert load_checkpoint(storage, which).facts.step == step
    assert not missing


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"missing"}))
def test_a_damaged_best_names_what_is_there(tmp_path, damage):
    storage = old_run(tmp_path)
    storage.write("checkpoints/best", DAMAGE[damage])
    with pytest.raises(CheckpointError, match=r"best .*there are step-00000100, step-00000090") as caught:
        open_checkpoint(storage.url)
    assert "\n" not in str(caught.value)
    save_checkpoint(storage, checkpoint_at(110), best=False, keep=1)
    whole = [name for name in storage.list_names("checkpoints/step-") if name.endswith("/checkpoint.json")]
    assert len(whole) == 3, "nothing is removed while the best is not known"


def test_an_evaluation_does_not_take_latest_for_a_damaged_best(tmp_path, capsys):
    from brewclip.checkpoints.locate import open_system

    storage = old_run(tmp_path)
    storage.write("checkpoints/step-00000090/model.safetensors", b"damaged")
    with pytest.raises(UserError, match=r"step-00000090/model\.safetensors is damaged.*there are step-00000100"):
        open_system(storage.url)
    storage.delete("checkpoints/best")
    assert open_system(storage.url).facts.step == 100
    assert "has no best checkpoint, its latest is used: step 100" in capsys.readouterr().err
