"""`brewclip.load`, the index and `python -m brewclip`: the same features as in training and evaluation."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import brewclip
from brewclip.__main__ import main
from brewclip.checkpoints.checkpoint import save_checkpoint
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import flatten, preset
from brewclip.config.command_line import ending_with_its_reader
from brewclip.data.images import decode_image
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.factory import build_model
from brewclip.models.clip import PromptedCLIP
from brewclip.models.whisper import Speech
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.pretrained.load import load_clip
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, world_seed
from brewclip.serving.index import ImageIndex
from tests.training.features import AUDIO_DIM

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
CONFIG = preset("scenes")
CONFIG = replace(CONFIG, model=replace(CONFIG.model, ff_dim=32))


def save_run(
    folder: Path, name: str, *, seed: int = 0, step: int = 7, clip_sha256: str = "", settings: dict | None = None
) -> str:
    """Write a run with the initial weights of a seed, and return its URL."""
    clip = load_clip("scenes")
    config = replace(CONFIG, run=replace(CONFIG.run, seed=seed, name=name))
    model = build_model(config, PromptedCLIP(clip.model), AUDIO_DIM)
    sha256 = {"scenes": clip_sha256 or weights_sha256(clip.model)}
    facts = CheckpointFacts(
        step=step,
        config=flatten(config),
        frozen_sha256=sha256,
        audio_dim=AUDIO_DIM,
        frozen_settings={"scenes": settings} if settings else {},
    )
    url = f"{folder.as_uri()}/runs/{name}"
    state = {key: value.contiguous() for key, value in model.trained_state().items()}
    save_checkpoint(open_storage(url), Checkpoint(facts, state, {}), best=True, keep=2)
    return url


class MadeUpReader:
    """Fake Whisper, as the real one takes seconds to load: frames from the samples, one sentence for all."""

    def read(self, waveforms):
        frames = [np.resize(waveform, (5, AUDIO_DIM)).astype(np.float16) for waveform in waveforms]
        return [Speech(*["a red apple"] * 3, "en", -0.1, 0.0, 1.0, 0.0, None, (), one) for one in frames]


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    save_run(folder, "one")
    save_run(folder, "other", seed=1)
    return folder


@pytest.fixture(scope="module")
def embedder(storage):
    loaded = brewclip.load(f"{storage.as_uri()}/runs/one")
    loaded._readers.reader = lambda task, language: MadeUpReader()
    return loaded


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of six scenes, one in a subfolder, one file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number in range(6):
        path = folder / ("more" if number == 5 else "") / f"{number}.png"
        draw_scene(sample_scene(world_seed("scenes/test"), number), 96).save(path)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("ignored")
    return folder


def waveform(seed: int, seconds: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(16_000 * seconds)).astype(np.float32)


def test_images_equal_the_model_output(embedder, images):
    path = images / "0.png"
    clip = load_clip("scenes")
    model = build_model(CONFIG, PromptedCLIP(clip.model), AUDIO_DIM).eval()
    square = torch.from_numpy(decode_image(path.read_bytes(), clip.image_size)).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    with torch.no_grad():
        expected = model.encode_image(((square - mean) / std)[None]).numpy()
    found = embedder.embed_images([path])
    assert found.dtype == np.float32 and found.shape == (1, embedder.embed_dim)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_an_image_is_the_same_as_path_image_and_array(embedder, images):
    path = images / "1.png"
    image = Image.open(path)
    found = embedder.embed_images([path, str(path), image, np.asarray(image.convert("RGB"))])
    np.testing.assert_allclose(found, np.repeat(found[:1], 4, 0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_speech_is_the_same_in_any_batch_and_as_a_file(embedder, tmp_path):
    waves = [waveform(seed, 0.3 + seed / 10) for seed in range(3)]
    together = embedder.embed_speech(waves)
    alone = np.concatenate([embedder.embed_speech([one]) for one in waves])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.dtype == np.float32
    soundfile.write(tmp_path / "a.wav", waves[0], 16_000, subtype="FLOAT")
    np.testing.assert_allclose(embedder.embed_speech([tmp_path / "a.wav"]), together[:1], atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3), "the sound is heard"


def test_empty_lists_give_empty_arrays(embedder):
    assert embedder.embed_speech([]).shape == embedder.embed_images([]).shape == (0, embedder.embed_dim)


@pytest.fixture(scope="module")
def index(embedder, images, tmp_path_factory):
    return embedder.build_index([images], tmp_path_factory.mktemp("index"))[0]


def test_search_finds_the_nearest_in_order(embedder, index):
    names = [index.entry(row).name for row in range(len(index))]
    queries = embedder.embed_speech([waveform(0), waveform(1)])
    for query, matches in zip(queries, embedder.search(index, [waveform(0), waveform(1)], k=3), strict=True):
        scores = index.vectors.astype(np.float32) @ query
        assert [match.name for match in matches] == [names[i] for i in np.argsort(-scores)[:3]]
        assert [match.rank for match in matches] == [1, 2, 3]
        assert matches[0].score == pytest.approx(scores.max(), abs=1e-5)
    assert embedder.search(index, queries, k=99)[0][0].name == embedder.search(index, queries, k=1)[0][0].name


def test_an_index_of_its_own_images_finds_each_first(embedder, index):
    names = [index.entry(row).name for row in range(len(index))]
    assert len(names) == 6, "not the broken one, nor the text"
    found = embedder.search(index, 3 * embedder.embed_images(names), k=1)
    assert [matches[0].name for matches in found] == names
    assert found[0][0].score == pytest.approx(1, abs=1e-3)


def test_an_index_refuses_another_system(embedder, storage, index):
    assert index.checkpoint == f"{storage.as_uri()}/runs/one"
    with pytest.raises(UserError, match=r"index was made by .*/runs/one \(step 7.*, this is .*/runs/other"):
        brewclip.load(f"{storage.as_uri()}/runs/other").search(index, [waveform(0)])
    identity = {name: value for name, value in index.identity.items() if name != "frozen_settings"}
    old = ImageIndex(replace(index.facts, identity=identity), index.table, index.vectors, [])
    with pytest.raises(UserError, match=r"CLIP scenes \w+ with settings unknown\), this is .*: rebuild it"):
        embedder.search(old, [waveform(0)])


def test_names_that_load_understands(storage, monkeypatch):
    identity = brewclip.load(f"{storage.as_uri()}/runs/one").identity
    assert identity["step"] == 7 and len(identity["weights_sha256"]) == 64
    assert brewclip.load(f"{storage.as_uri()}/runs/one/checkpoints/step-00000007").identity == identity
    assert brewclip.load(str(storage / "runs" / "one")).identity == identity
    monkeypatch.setenv("BREWCLIP_STORAGE", storage.as_uri())
    assert brewclip.load("one").identity == identity
    plain = brewclip.load("zero_shot", clip="scenes")
    assert plain.identity == identity | {"weights_sha256": "", "step": 0}
    with pytest.raises(UserError, match=r"no such run below file:.* \(BREWCLIP_STORAGE\); did you mean 'one'\?"):
        brewclip.load("none")
    with pytest.raises(UserError, match="names its own CLIP"):
        brewclip.load("one", clip="scenes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nonexistent", "no folder '/nonexistent' on this machine: give the folder of a run, its URL"),
        ("./none", "no folder './none' on this machine"),
        ("file:///nonexistent", "no checkpoint at file:///nonexistent: give the URL of a run"),
        ("https://host/run", "storage URL 'https://host/run' must be s3://"),
        ("models:/spoken@best", "models:/spoken@best is looked up in MLflow: give --tracking.uri or set MLFLOW"),
    ],
)
def test_missing_checkpoints_are_named_as_given(name, message, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError) as caught:
        brewclip.load(name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_other_frozen_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="trained on scenes with sha256 000000"):
        brewclip.load(save_run(tmp_path, "alien", clip_sha256="0" * 64))


def test_a_checkpoint_of_another_activation_is_refused_and_one_without_a_record_is_not(embedder, tmp_path):
    """The embedder's checkpoint records nothing, as those before 2026-11-26."""
    settings = embedder.identity["frozen_settings"]["scenes"]
    assert (
        brewclip.load(save_run(tmp_path, "same", settings=settings)).identity["frozen_settings"]["scenes"] == settings
    )
    with pytest.raises(UserError, match=r"trained on scenes with activation Tanh, here it is \w+: use the version of"):
        brewclip.load(save_run(tmp_path, "other", settings=settings | {"activation": "Tanh"}))


def png(*size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        ("a.wav", "must be a list"),
        (np.float32(1), "must be a list"),
        ([np.zeros(0, np.float32)], "number 0 lasts 0.0 s"),
        ([np.zeros(10, np.float32), np.zeros((2, 10), np.float32)], r"number 1 is float32 of shape \(2, 10\)"),
        ([np.array([1, 2, 3])], "number 0 is int64"),
        ([np.array([0.0, np.nan])], "not finite"),
        ([np.array([20_000.0, -3.0])], "divide 16-bit ones by 32768"),
        ([np.zeros(16_000 * 601, np.float32)], "lasts 601.0 s; up to 600 s"),
        (["/nowhere/a.wav"], "/nowhere/a.wav is not a file"),
        (["/dev/zero"], "/dev/zero is not a file"),
        ([__file__], "not a sound file"),
    ],
)
def test_recordings_that_cannot_be_used(embedder, recordings, message):
    with pytest.raises(ValueError, match=message):
        embedder.embed_speech(recordings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["/nowhere/a.png"], "not a file"),
        ([__file__], "test_serving.py': cannot identify"),
        ([np.zeros((4, 4, 3), np.float32)], "number 0: float32 of shape"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2, 7), np.uint8)], r"number 1: .*\(2, 2, 7\)"),
        ([np.zeros((0, 4, 3), np.uint8)], "4 x 0 pixels|0 pixels|tile cannot extend"),
        ([3], "int is no image"),
        ([Image.new("L", (20_000, 20_000))], "20000 x 20000 pixels"),
    ],
)
def test_images_that_cannot_be_used(embedder, images, message):
    with pytest.raises(ValueError, match=message):
        embedder.embed_images(images)


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_bomb_on_disk_is_refused_before_it_is_decoded(embedder, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(12_000, 10_000))
    with pytest.raises(ValueError, match="12000 x 10000 pixels are too many"):
        embedder.embed_images([tmp_path / "bomb.png"])


def run(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "brewclip", *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=200, check=False)


def call(capsys, *words: object) -> tuple[int, str, str]:
    """Run a command in this process, as loading torch takes seconds; return its code and output."""
    with pytest.raises(SystemExit) as exited:
        main([str(word) for word in words])
    return exited.value.code, *capsys.readouterr()


@pytest.fixture(scope="module")
def built(images, tmp_path_factory):
    """An index made from the command line, and what was printed."""
    out = tmp_path_factory.mktemp("built") / "index"
    return out, run("index", images, "--out", out, "--checkpoint", "zero_shot", "--clip", "scenes")


def test_index_and_search_from_the_command_line_with_a_real_recording(built, shared_directory, capsys):
    out, done = built
    assert done.returncode == 0, done.stderr
    assert "6 images in" in done.stdout and "6 added, 0 renamed, 0 removed, 0 unchanged; 1 left out" in done.stdout
    assert "index: 7/7 images" in done.stderr and "broken.jpg: cannot identify an image" in done.stderr
    code, text, heard = call(
        capsys, "search", "--index", out, "--audio", shared_directory / "speech/jfk.flac", "--top", 2
    )
    assert code == 0 and "ask not what your country can do for you" in heard
    header, first, second = text.splitlines()
    assert header.split() == ["rank", "score", "image"]
    assert [line.split()[0] for line in (first, second)] == ["1", "2"]
    assert float(first.split()[1]) >= float(second.split()[1])
    assert Path(first.split()[2]).is_file()


def test_a_reader_that_ends_early_is_no_error():
    """As in `brewclip search ... | head`: neither a traceback nor a line."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "brewclip", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=CHECKOUT, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error():
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as pipe, pytest.raises(BrokenPipeError), ending_with_its_reader():
        pipe.write(b"lost")


def test_commands_speak_json(built, images, capsys):
    out, _ = built
    code, text, _ = call(capsys, "index", images, "--out", out, "--json")
    report = json.loads(text)
    assert code == 0 and (report["num_unchanged"], report["num_read"], len(report["unusable"])) == (6, 0, 1)
    code, text, _ = call(capsys, "search", "--index", out, "--image", images / "2.png", "--top", 3, "--json")
    found = json.loads(text)
    assert code == 0 and found["query"] == {"kind": "image", "image": str(images / "2.png")}
    assert [one["rank"] for one in found["results"]] == [1, 2, 3]
    assert found["results"][0]["name"] == str(images / "2.png")


def test_nothing_above_the_threshold_is_exit_code_1(built, capsys):
    out, _ = built
    code, text, error = call(capsys, "search", "--index", out, "--text", "a red apple", "--threshold", 0.999)
    assert (code, text, error) == (1, "", "no image is as near as --threshold\n")
    assert call(capsys, "search", "--index", out, "--text", "a red apple", "--threshold", -0.9)[0] == 0


def test_the_index_of_a_checkpoint_that_moved_is_searched_from_its_new_place(storage, built, capsys):
    out, _ = built
    words = ("search", "--index", out, "--text", "a red apple", "--checkpoint", storage / "runs" / "one")
    code, _, error = call(capsys, *words)
    assert code == 2 and "the index was made by zero_shot" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["find"], "no command 'find': there are index, search, serve"),
        ([], "no command ''"),
        (["index", "/nowhere", "--out", "x"], "'/nowhere' is neither a folder nor a file on this machine"),
        (["index", "--out", "x"], "no images are named: give folders, files"),
        (["search", "--index", "/nowhere/i", "--audio", "a.wav"], "index /nowhere/i does not exist"),
        (["search", "--index", "a", "--audio", "b", "--kk", "1"], "unknown argument '--kk'"),
        (["search", "--index", "a"], "give one of --audio, --text and --image; none is given"),
        (["search", "--index", "a", "--text", "b", "--image", "c"], "text and image is given"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, message, capsys):
    code, _, error = call(capsys, *words)
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
