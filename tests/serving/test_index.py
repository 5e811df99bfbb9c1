"""The index on disk: written atomically, and refused if a row is not of unit length."""

import errno
import os

import numpy as np
import pytest

from brewclip.errors import UserError
from brewclip.serving.npz_index import Index


def index_of(num_images: int) -> Index:
    features = np.random.default_rng(0).normal(size=(num_images, 8)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Index([f"{number}.jpg" for number in range(num_images)], features, {"step": 1}, "one")


def test_a_full_disk_leaves_the_old_index(tmp_path, monkeypatch):
    path = tmp_path / "index.npz"
    index_of(3).save(path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"index .*index.npz cannot be written: .*No space left on device"):
        index_of(5).save(path)
    monkeypatch.undo()
    assert len(Index.load(path).names) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["index.npz"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_a_row_that_is_not_of_unit_length_is_refused(tmp_path, value):
    index = index_of(4)
    index.features[2] = value
    index.save(tmp_path / "index.npz")
    with pytest.raises(UserError, match=r"is not an index .*features of '2.jpg' are not of unit length"):
        Index.load(tmp_path / "index.npz")


def test_save_and_load_round_trip(tmp_path):
    index_of(4).save(tmp_path / "folder" / "index.npz")
    assert np.array_equal(Index.load(tmp_path / "folder" / "index.npz").features, index_of(4).features)
