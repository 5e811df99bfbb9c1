"""Cached shards: a damaged copy is replaced, a disk that takes none is done without, and the bucket is not blamed."""

import errno
import shutil

import pytest

from brewclip.data.folder_storage import FolderStorage
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import SplitReader, extents_between
from brewclip.errors import ManifestError
from tests.data.test_damage import NUM_SAMPLES, SHARD, write_split


@pytest.fixture
def stored(tmp_path):
    write_split(tmp_path / "split")
    return open_manifest((tmp_path / "split").as_uri())


def bytes_of(reader: SplitReader) -> list[bytes]:
    """Read all samples of a split as bytes; none may be damaged."""
    extents = extents_between(reader.manifest, 0, NUM_SAMPLES)
    return [bytes(sample) for extent in extents for sample in reader.read(extent)]


def flip(data: bytes) -> bytes:
    return data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-600], lambda data: b""], ids=["flip", "end", "empty"])
def test_a_damaged_copy_is_replaced(damage, stored, tmp_path, capsys):
    expected = bytes_of(SplitReader(stored))
    reader = SplitReader(stored, str(tmp_path / "cache"))
    assert bytes_of(reader) == expected
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    (copy,) = (tmp_path / "cache").rglob(SHARD)
    whole = copy.read_bytes()
    copy.write_bytes(damage(whole))
    assert bytes_of(reader) == expected
    assert capsys.readouterr().err == f"cached shard {copy} is damaged: removed, to be copied again\n"
    assert bytes_of(reader) == expected
    assert copy.read_bytes() == whole and not capsys.readouterr().err


def test_training_goes_on_without_a_directory_that_cannot_be_made(stored, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    reader = SplitReader(stored, str(tmp_path / "file" / "cache"))
    assert bytes_of(reader) == bytes_of(SplitReader(stored))
    reason = f"--data.cache-directory {tmp_path / 'file' / 'cache'}: Not a directory"
    assert capsys.readouterr().err == f"shards are not cached any more: {reason}\n", "once, not for each shard"


def test_training_goes_on_without_a_disk_that_is_full(stored, tmp_path, capsys, monkeypatch):
    def refuse(storage, name, path):
        path.write_bytes(b"as much as there was room for")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FolderStorage, "download", refuse)
    reader = SplitReader(stored, str(tmp_path / "cache"))
    assert bytes_of(reader) == bytes_of(SplitReader(stored))
    assert capsys.readouterr().err.endswith("/cache: No space left on device\n")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_stored_shard_that_was_changed_is_named(stored, tmp_path):
    path = tmp_path / "split" / SHARD
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(ManifestError, match=rf"{SHARD} has another sha256: it is not the one of "):
        bytes_of(SplitReader(stored, str(tmp_path / "cache")))
    shutil.rmtree(tmp_path / "split")
    with pytest.raises(ManifestError, match="is missing"):
        bytes_of(SplitReader(stored, str(tmp_path / "cache")))
