"""An index in a bucket, made by the workers of a cluster, brought up to date and searched from one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brewclip.__main__ import main
from brewclip.data.storage import open_storage
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, world_seed
from brewclip.serving.index.place import IndexPlace, open_index

pytestmark = [pytest.mark.services, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]


def call(capsys, *words: str) -> dict:
    """Run a command of `brewclip` and return its JSON."""
    with pytest.raises(SystemExit) as exited:
        main([*words, "--json"])
    output = capsys.readouterr()
    assert exited.value.code == 0, output.err
    return json.loads(output.out)


def test_a_bucket_is_indexed_by_a_cluster_and_searched(ray_head, bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = open_storage(bucket)
    for number in range(5):
        draw_scene(sample_scene(world_seed("scenes/test"), number), 96).save(tmp_path / "scene.png")
        storage.upload(tmp_path / "scene.png", f"images/{number}.png")
    storage.write("images/broken #1.jpg", b"no image")
    storage.write("images-of-others/9.png", b"not asked for")
    command = [sys.executable, "jobs/index.py", f"{bucket}/images", "--out", f"{bucket}/index"]
    command += ["--checkpoint", "zero_shot", "--clip", "scenes", "--cpus-per-worker", "2"]
    environment = {"PYTHONPATH": str(CHECKOUT), **os.environ}
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "index with 2 workers: 6/6 images" in done.stdout
    assert "5 images in" in done.stdout and f"{bucket}/images/broken #1.jpg: cannot identify" in done.stderr

    first = open_index(f"{bucket}/index")
    storage.write("images/5.png", storage.read("images/0.png"))
    storage.delete("images/0.png")
    report = call(capsys, "index", f"{bucket}/images/*.png", "--out", f"{bucket}/index")
    assert (report["num_renamed"], report["num_added"], report["num_read"], report["unusable"]) == (1, 0, 1, [])
    assert call(capsys, "search", "--index", f"{bucket}/index", "--text", "a red apple")["results"]
    index = open_index(f"{bucket}/index")
    row = index.row_of(first.entry(0).image_id)
    assert index.entry(row).name == f"{bucket}/images/5.png"
    assert index.read_image(row) == storage.read("images/5.png")
    names = set(storage.list_names("index/"))
    assert names == {f"index/{name}" for name in (*index.facts.files(), "index.json")}, "parts and old files are gone"

    place = IndexPlace(f"{bucket}/index")
    half = place.folder / "vectors-00000000.npy"
    with place.locked():
        half.write_bytes(b"of a build that is running")
        assert open_index(f"{bucket}/index").facts == index.facts
        assert half.exists(), "a search leaves the files of a build in the same cache"
    open_index(f"{bucket}/index")
    assert not half.exists()
