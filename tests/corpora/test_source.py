"""Names in a corpus that are no files: opened by a recipe, they would last for ever."""

import os
import socket

import pytest

from brewclip.corpora.source import Source
from brewclip.data.schema import BadSample
from brewclip.errors import UserError

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A corpus with a pipe, a socket, a device, a folder and links to them."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    socket.socket(socket.AF_UNIX).bind("socket")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "file").write_bytes(b"[1]\n")
    (tmp_path / "file_link").symlink_to("file")
    (tmp_path / "deep").write_text("[" * 100_000)
    return Source(str(tmp_path))


KINDS = {"pipe": "named pipe", "socket": "socket", "device": "device", "folder": "folder", "link": "named pipe"}


@pytest.mark.parametrize("name", KINDS)
def test_only_files_are_read(source, name):
    with pytest.raises(BadSample, match=f"unreadable_image: .*/{name} is a {KINDS[name]}"):
        source.read(name, "image")
    for url in (f"{source.storage.url}/{name}",):
        with pytest.raises(BadSample, match=f"is a {KINDS[name]}"):
            source.read(url, "recording")
    for read in (source.text, source.json, lambda name: list(source.lines(name))):
        with pytest.raises(UserError, match=f"/{name} is a {KINDS[name]}, not a file"):
            read(name)


def test_files_and_links_to_files_are_read(source):
    assert source.read("file_link", "image") == b"[1]\n"
    assert source.json("file") == [1] and list(source.lines("file_link")) == ["[1]"]
    with pytest.raises(BadSample, match="missing_image"):
        source.read("nothing", "image")


def test_too_deep_json_gives_one_line(source):
    with pytest.raises(UserError, match="deep is not JSON") as caught:
        source.json("deep")
    assert "\n" not in str(caught.value)


def test_a_too_long_line_is_refused(source, monkeypatch):
    monkeypatch.setattr("brewclip.corpora.source._LONGEST_LINE_BYTES", 1000)
    with pytest.raises(UserError, match="has a line of more than 1000 bytes"):
        list(source.lines("deep"))
