"""The HTML report: complete, without network requests, and with texts escaped."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from brewclip.audio import decode_audio
from brewclip.config import preset
from brewclip.evaluation import report
from brewclip.evaluation.embed import Embeddings
from brewclip.evaluation.queries import QuerySamples, nearest_images
from brewclip.evaluation.report import build_report, script_json
from tests.evaluation.results import evaluate_here, system_of
from tests.evaluation.spoken import write_spoken

NUM_IMAGES = 30
UNHEARD = 4


@pytest.fixture(scope="module")
def requests_seen():
    """A local web server, and the paths requested from it."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory, requests_seen):
    url = tmp_path_factory.mktemp("storage").as_uri()
    port, _ = requests_seen
    hostile = f"</script><script>document.title='owned'</script><img src=http://127.0.0.1:{port}/x>\u2028\"'&"
    write_spoken(f"{url}/scenes", "test", NUM_IMAGES, texts={0: hostile}, unheard=[UNHEARD])
    return replace(preset("scenes"), storage=url)


@pytest.fixture(scope="module")
def results(config):
    return [evaluate_here(system_of(config, variant), "test") for variant in ("zero_shot", "brewclip")]


@pytest.fixture(scope="module")
def page(config, results):
    return build_report(config, "test", results, 100, baseline="zero_shot")


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def test_queries_have_ranks_and_nearest_images_of_each_system(page, results):
    data = data_of(page)
    first = results[0]
    assert data["systems"] == ["zero_shot", "brewclip"]
    assert [query["key"] for query in data["queries"]] == first.embeddings.keys
    assert len(data["queries"]) == NUM_IMAGES - 1
    for row, query in enumerate(data["queries"]):
        assert query["ranks"] == [int(one.result.speech_to_image_rank[row]) for one in results]
        for rank, margin, top in zip(query["ranks"], query["margins"], query["top"], strict=True):
            assert len(top) == 5
            assert (rank == 1) == (margin > 0) == (top[0] == query["image"])
            assert (query["image"] in top) == (rank <= 5)
    assert data["queries"][1]["said"] == "scene 1"
    assert data["queries"][1]["wer"] == 1.5  # "scene 1" was heard as "a scene of number 1": 3 inserted for 2 words


def test_a_recording_that_a_system_left_out_has_no_answer(config, results):
    lonely = replace(results[1], embeddings=_without_first(results[1].embeddings))
    lonely = replace(lonely, result=lonely.embeddings.rank())
    data = data_of(build_report(config, "test", [results[0], lonely], 100))
    assert data["queries"][0]["ranks"][1] is None
    assert data["queries"][0]["top"][1] == []
    assert data["queries"][1]["ranks"][1] == int(lonely.result.speech_to_image_rank[0])


def _without_first(full: Embeddings) -> Embeddings:
    rows = {name: getattr(full, name)[1:] for name in ("keys", "texts", "speech_image_ids", "places", "speech")}
    return replace(full, **rows)


def test_each_image_is_stored_once_and_is_small(page):
    stored = re.findall(r'id="image-(\d+)">([^<]*)<', page)
    assert len(stored) == len({number for number, _ in stored}) == NUM_IMAGES - 1
    assert all(base64.b64decode(text).startswith(b"\xff\xd8") for _, text in stored)


def test_the_sound_belongs_to_the_query(page):
    """Also after a recording that the extraction skipped: later ones have other indices in the corpus."""
    sounds = dict(re.findall(r'id="sound-(\d+)">([^<]*)<', page))
    assert len(sounds) == NUM_IMAGES - 1
    for number, query in enumerate(data_of(page)["queries"]):
        image = int(query["key"].removeprefix("test").removesuffix("-0"))
        assert image == number + (number >= UNHEARD)
        seconds = len(decode_audio(base64.b64decode(sounds[str(number)]))) / 16_000
        assert seconds == pytest.approx(0.5 + 0.1 * image, abs=0.01)


def test_the_sound_is_found_where_the_extraction_divided_a_shard(tmp_path):
    """70 recordings of one shard become two of features, of which the second lacks one."""
    config = replace(preset("scenes"), storage=tmp_path.as_uri())
    write_spoken(config.corpus_url, "test", 70, unheard=[50])
    samples = QuerySamples(config, "test")
    assert samples.features.manifest.num_samples.tolist() == [35, 34]
    for shard, index, image in ((0, 0, 0), (0, 34, 34), (1, 0, 35), (1, 14, 49), (1, 15, 51), (1, 33, 69)):
        seconds = len(decode_audio(samples.sound((shard, index), f"test{image}-0"))) / 16_000
        assert seconds == pytest.approx(0.5 + 0.1 * image, abs=0.01)


def test_sounds_that_do_not_fit_are_left_out_evenly_with_a_note(config, results, monkeypatch):
    sizes = [len(QuerySamples(config, "test").sound((0, row), results[0].embeddings.keys[row])) for row in range(29)]
    monkeypatch.setattr(report, "SOUND_BYTES", sum(sizes) // 2)
    page = build_report(config, "test", results, 100)
    numbers = sorted(int(number) for number in re.findall(r'id="sound-(\d+)"', page))
    assert 8 <= len(numbers) <= 20
    assert max(np.diff([-1, *numbers, 29])) <= 4
    assert f"{len(numbers)} with their" in page
    assert "of them fit into the page" in page


def test_a_report_without_stored_recordings_has_no_sound(config, results, tmp_path):
    shutil.copytree(config.storage.removeprefix("file://"), tmp_path / "storage")
    shutil.rmtree(tmp_path / "storage/scenes/test")
    page = build_report(replace(config, storage=(tmp_path / "storage").as_uri()), "test", results, 3)
    assert 'id="sound-' not in page
    assert len(data_of(page)["queries"]) == 3


def test_texts_cannot_become_markup(page):
    assert "<img src=http" not in page
    assert page.count("<script>") == 1
    for text in ("</script>", "a\u2028b", "<!--", "\ud800"):
        assert json.loads(script_json([text])) == [text]
        assert re.fullmatch(r"[ -~]*", script_json([text]))
        assert "<" not in script_json([text])


def test_the_page_allows_its_own_script_only(page):
    (script,) = re.findall(r"(?s)<script>(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "http" not in policy
    outside_the_data = re.sub(r"(?s)<script type=.*?</script>", "", page)
    assert not re.findall(r"""(?:src|href)=["']?https?://""", outside_the_data)


def test_nearest_images_by_hand():
    speech = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    images = np.array([[0.0, 1.0], [3.0, 0.0], [1.0, 1.0]], np.float32)
    embeddings = Embeddings(["x", "y"], ["", ""], ["b", "c"], [(0, 0), (0, 1)], speech, ["a", "b", "c"], images)
    nearest, margins = nearest_images(embeddings, [0, 1], 2)
    assert nearest == [["b", "c"], ["a", "c"]]
    np.testing.assert_allclose(margins, [1 - 0.5**0.5, 0.5**0.5 - 1], atol=1e-6)


PROBE = """
const wait = () => new Promise(done => setTimeout(done, 30));
addEventListener("error", event => { document.body.dataset.error = event.message; });
(async () => {
  const seen = {}, count = () => document.getElementById("count").textContent;
  const set = async (name, value) => {
    const control = document.getElementById(name);
    control.value = value;
    control.dispatchEvent(new Event("input"));
    await wait();
    return count();
  };
  seen.first = count();
  seen.title = document.title;
  seen.said = document.querySelector("#query-0 bdi").textContent;
  seen.durations = await Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise(done => {
    if (audio.readyState > 0) done(audio.duration);
    audio.addEventListener("loadedmetadata", () => done(audio.duration));
    audio.addEventListener("error", () => done(-1));
  })));
  seen.images = [...document.images].every(image => image.naturalWidth > 0);
  document.querySelector("button.on").click();
  seen.second = [document.querySelectorAll(".query").length, location.hash];
  seen.wrong = await set("show", "wrong");
  seen.right = await set("show", "right");
  seen.rightAddress = location.hash;
  await set("show", "all");
  seen.errors = await set("wer", "0");
  await set("wer", "any");
  seen.text = await set("text", "NUMBER 12");
  location.hash = "#system=brewclip&show=wrong&at=10&other=right:zero_shot&sort=worst";
  await wait();
  seen.address = [count(), document.getElementById("system").value, document.getElementById("text").value];
  seen.worst = [...document.querySelectorAll(".query")].map(query => Number(query.id.slice(6)));
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
})();
"""


@pytest.mark.services
def test_the_page_in_a_browser(page, results, requests_seen, tmp_path):
    found = open_in_browser(with_script(page, PROBE), tmp_path)
    ranks = [one.result.speech_to_image_rank for one in results]
    total, (port, seen_paths) = len(ranks[0]), requests_seen
    assert found["first"] == f"{total} of {total} shown"
    assert found["title"] == "BrewCLIP: scenes/test"
    assert found["said"].startswith("</script><script>document.title='owned'</script>")
    assert f"http://127.0.0.1:{port}/x" in found["said"]
    images = [number + (number >= UNHEARD) for number in range(20)]
    assert found["durations"] == pytest.approx([0.5 + 0.1 * number for number in images], abs=0.02)
    assert found["images"]
    assert found["second"] == [total - 20, "#page=2"]
    hits = int((ranks[0] == 1).sum())
    assert found["right"] == f"{hits} of {total} shown"
    assert found["wrong"] == f"{total - hits} of {total} shown"
    assert found["rightAddress"] == "#show=right"
    assert found["errors"] == f"1 of {total} shown"  # the hostile text alone was heard as it was said
    assert found["text"] == f"1 of {total} shown"
    expected = np.flatnonzero((ranks[1] > 10) & (ranks[0] <= 10))
    assert 0 < len(expected) < total
    assert found["address"] == [f"{len(expected)} of {total} shown", "brewclip", ""]
    shown = [int(ranks[1][row]) for row in found["worst"]]
    assert set(found["worst"]) <= set(expected.tolist())
    assert shown == sorted(shown, reverse=True)
    assert seen_paths == []


def with_script(page: str, extra: str) -> str:
    """Return the page with an extended script, and the policy that allows it."""
    (script,) = re.findall(r"(?s)<script>(.*?)</script>", page)
    both = script + extra
    digest = base64.b64encode(hashlib.sha256(both.encode()).digest()).decode()
    return re.sub(r"script-src 'sha256-[^']*'", f"script-src 'sha256-{digest}'", page).replace(script, both)


def open_in_browser(page: str, folder) -> dict:
    """Open a page in headless Chromium, and return what its script wrote into #seen."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: the report is not opened in a browser (Debian package chromium)")
    path = folder / "page.html"
    path.write_text(page)
    flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [chromium, *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=150, check=False
    )
    found = re.findall(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, re.findall(r'data-error="[^"]*"', done.stdout) or done.stderr[-2000:]
    return json.loads(found[0].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
