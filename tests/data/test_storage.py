"""Storage on disk and on a real S3 server: the same behaviour, and one clear line when it cannot be."""

import socket
import threading

import pytest

from brewclip.data.storage import check_reachable, exists, open_storage
from brewclip.errors import ObjectMissing, StorageError


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.services)])
def storage(request, tmp_path):
    if request.param == "file":
        return open_storage((tmp_path / "folder").as_uri())
    return open_storage(f"{request.getfixturevalue('bucket')}/some/prefix")


def test_what_is_written_is_read(storage, tmp_path):
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.size("a/b.bin") == 10
    assert storage.read_range("a/b.bin", 2, 5) == b"234"
    assert storage.read_range("a/b.bin", 8, 20) == b"89"
    assert storage.read_range("a/b.bin", 50, 60) == b""
    assert storage.read_range("a/b.bin", 5, 5) == b""
    assert storage.read_part("a/b.bin", 8, 20) == (b"89", 10)
    assert storage.read_part("a/b.bin", 50, 60) == (b"", 10)
    (tmp_path / "local").write_bytes(b"x" * 100)
    storage.upload(tmp_path / "local", "a/c.bin")
    storage.download("a/c.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"x" * 100


def test_names_are_listed_below_a_prefix_and_deleted(storage):
    for name in ("run/one", "run/two", "runner/three"):
        storage.write(name, b"")
    assert storage.list_names("run/") == ["run/one", "run/two"]
    assert storage.list_names() == ["run/one", "run/two", "runner/three"]
    storage.delete("run/one")
    storage.delete("run/never-was")
    assert storage.list_names("run") == ["run/two", "runner/three"]
    assert not exists(storage, "run/one")


def test_a_missing_object_is_named(storage):
    for operation in (storage.read, storage.size, lambda name: storage.read_range(name, 0, 1)):
        with pytest.raises(ObjectMissing, match="absent does not exist"):
            operation("absent")


def test_writing_replaces_whole(storage):
    storage.write("a", b"long content")
    storage.write("a", b"short")
    assert storage.read("a") == b"short"


def test_other_urls_are_refused():
    with pytest.raises(StorageError, match="must be s3://bucket"):
        open_storage("ftp://somewhere")


@pytest.mark.services
def test_a_missing_bucket_a_wrong_key_and_a_silent_server_are_distinguished(s3, bucket, monkeypatch):
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
        check_reachable("s3://no-such-bucket/x")
    check_reachable(bucket)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="S3 refuses the key") as caught:
        check_reachable(bucket)
    assert "wrong" not in str(caught.value)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(StorageError, match="cannot be reached"):
            check_reachable(bucket)


@pytest.mark.services
def test_an_outage_is_outlived(s3, bucket):
    storage = open_storage(bucket, retry_seconds=60)
    storage.write("kept", b"here")
    s3.stop()
    threading.Timer(3.0, s3.start).start()
    assert storage.read("kept") == b"here"
