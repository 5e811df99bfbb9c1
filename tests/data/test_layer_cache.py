"""Cached layers: found by content, apart for each encoder, and never a reason for a run to fail."""

import numpy as np
import pytest

from brewclip.data.layer_cache import LayerFolder
from brewclip.errors import StorageError

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


def flipped(at):
    return lambda data: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"0",
    "sum": flipped(0),
    "shape": flipped(8),
    "value": flipped(30),
    "another file": lambda data: b"PK" + bytes(60),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(damage, tmp_path):
    folder = LayerFolder(tmp_path, ["hubert"])
    folder.put(SOUND, LAYERS)
    (path,) = files_in(tmp_path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert folder.get(SOUND) is None
    folder.put(SOUND, LAYERS)
    np.testing.assert_array_equal(folder.get(SOUND), LAYERS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"the folder of cached layers .*/file/layers cannot be made"):
        LayerFolder(tmp_path / "file" / "layers", ["hubert"])


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
