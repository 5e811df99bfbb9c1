"""Recordings that the page offers: what is listed and sent, and folders that cannot be used."""

import pytest
from starlette.testclient import TestClient

from brewclip.errors import UserError
from brewclip.service.app import build_app
from brewclip.service.examples import read_examples
from brewclip.service.local_engine import LocalEngine
from brewclip.service.settings import ServiceSettings
from tests.service.engines import small_searcher
from tests.service.recordings import spoken


def test_examples_have_titles_and_are_found_by_id_alone(tmp_path):
    for number, name in enumerate(("b.wav", "a.flac", "notes.md")):
        (tmp_path / name).write_bytes(spoken(number, format="FLAC" if name == "a.flac" else "WAV", subtype="PCM_16"))
    (tmp_path / "b.txt").write_text("two\ndogs\n")
    app = build_app(LocalEngine(small_searcher()), ServiceSettings("unused", examples=str(tmp_path)))
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    found = client.get("/v1/examples").json()["examples"]
    assert [one["title"] for one in found] == ["a", "two dogs"]
    for one, kind in zip(found, ("audio/flac", "audio/wav"), strict=True):
        sound = client.get(one["url"])
        assert sound.headers["content-type"] == kind
        heard = client.post("/v1/search", content=sound.content, headers={"Content-Type": kind}).json()
        assert heard["query"]["transcript"] == ("image 1" if kind == "audio/flac" else "image 0")
    for name in ("b.wav", "..%2Fb.wav", "0" * 16):
        assert client.get(f"/v1/examples/{name}").status_code in (404, 422)


def test_without_a_folder_there_are_none():
    client = TestClient(
        build_app(LocalEngine(small_searcher()), ServiceSettings("unused")), base_url="http://localhost"
    )
    assert client.get("/v1/examples").json() == {"examples": []}


def test_a_folder_that_cannot_be_used_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_examples(str(tmp_path / "none"), 100)
    with pytest.raises(UserError, match="0 recordings"):
        read_examples(str(tmp_path), 100)
    (tmp_path / "long.wav").write_bytes(bytes(101))
    with pytest.raises(UserError, match="which is larger than 100 bytes"):
        read_examples(str(tmp_path), 100)
