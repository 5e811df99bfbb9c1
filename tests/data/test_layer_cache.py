"""Cached layers: found by content, apart for each encoder, and never a reason for a run to fail."""

import numpy as np
import pytest

from brewclip.data.layer_cache import LayerFolder

SOUND = np.linspace(-1, 1, 500, dtype=np.float32)
LAYERS = np.arange(24, dtype=np.float16).reshape(2, 3, 4)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_layers_are_found_by_the_content_of_the_waveform(tmp_path):
    folder = LayerFolder(tmp_path / "new" / "cache", ["hubert", "abc"])
    assert folder.get(SOUND) is None
    folder.put(SOUND, LAYERS)
    for found in (folder.get(SOUND.copy()), LayerFolder(tmp_path / "new" / "cache", ["hubert", "abc"]).get(SOUND)):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, LAYERS)
    assert folder.get(SOUND[:-1]) is None
    assert LayerFolder(tmp_path / "new" / "cache", ["hubert", "abd"]).get(SOUND) is None
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01", None])
def test_a_damaged_file_is_replaced(damage, tmp_path):
    folder = LayerFolder(tmp_path, ["hubert"])
    folder.put(SOUND, LAYERS)
    (path,) = files_in(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert folder.get(SOUND) is None
    folder.put(SOUND, LAYERS)
    np.testing.assert_array_equal(folder.get(SOUND), LAYERS)


def test_pickled_objects_and_other_types_are_not_read(tmp_path):
    folder = LayerFolder(tmp_path, ["hubert"])
    folder.put(SOUND, LAYERS)
    (path,) = files_in(tmp_path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert folder.get(SOUND) is None
    np.save(path, LAYERS.astype(np.float64))
    assert folder.get(SOUND) is None


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path, capsys):
    folder = LayerFolder(tmp_path, ["hubert"])
    folder.put(SOUND, LAYERS)
    (path,) = files_in(tmp_path)
    for n in range(256):
        if f"{n:02x}" != path.parent.name:
            (path.parents[1] / f"{n:02x}").write_bytes(b"in the way")
    other = [np.full(100, n, np.float32) for n in range(3)]
    for sound in other:
        folder.put(sound, LAYERS)
    assert capsys.readouterr().err.count("layers are not cached any more, training goes on without: file://") == 1
    np.testing.assert_array_equal(folder.get(SOUND), LAYERS)
