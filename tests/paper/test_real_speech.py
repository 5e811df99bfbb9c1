"""Real speech: word errors compared with whisper.transcribe, emotional clips from the recipe to a probe by speaker."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import jiwer
import numpy as np
import pytest
from whisper.normalizers import EnglishTextNormalizer

from brewclip.config import preset
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.evaluation.folders import latest_evaluation
from brewclip.paper.real_recordings import DIGITS, JFK, STATEMENTS, SpokenClip, load_kinds
from brewclip.paper.real_speech import (
    EXTRACTION,
    TRANSCRIBE,
    WAYS,
    measure_word_errors,
    reproduce_real_speech,
)
from tests.datasets.miniatures import CHECKOUT

NO_SOUND = np.zeros(0, np.float32)


def test_word_errors_by_hand():
    clips = [SpokenClip("a", "Dogs are sitting.", NO_SOUND), SpokenClip("b", "seven", NO_SOUND)]
    heard = {WAYS[0]: ["dogs are sitting", "7"], TRANSCRIBE: ["Dogs were sitting!", ""]}
    ours, theirs = measure_word_errors("made up", clips, heard, {WAYS[0]: 0})
    assert (ours.rate[0], theirs.rate[0]) == (0.0, 50.0)
    assert ours.above_transcribe[0] == -50.0
    assert ours.num_words == 4


def test_a_folder_without_speech_gives_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="holds none of"):
        load_kinds(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        load_kinds(tmp_path / "nothing")


@pytest.mark.parametrize("number", range(10))
def test_a_digit_is_right_as_a_word_and_as_a_figure(number):
    heard = {TRANSCRIBE: [f" {number}."], EXTRACTION: [DIGITS[number].capitalize()]}
    clips = [SpokenClip("x", DIGITS[number], NO_SOUND)]
    assert all(one.rate[0] == 0.0 for one in measure_word_errors("digits", clips, heard, {}))


def test_recordings_of_each_kind_are_loaded_with_their_text(shared_directory):
    kinds = load_kinds(shared_directory / "speech")
    assert {kind: len(clips) for kind, clips in kinds.items()} == {"RAVDESS": 240, "spoken digits": 120, "jfk": 1}
    first = kinds["RAVDESS"][0]
    assert (first.text, first.speaker, first.emotion) == (STATEMENTS["01"], "01", "neutral")
    assert kinds["jfk"][0].text == JFK
    assert [one.text for one in kinds["spoken digits"][::12]] == list(DIGITS)


@pytest.mark.slow
def test_the_page_has_the_command_and_the_measurements(shared_directory, tmp_path):
    folder, name = tmp_path / "speech/ravdess/Actor_01", "03-01-01-01-01-01-01.flac"
    folder.mkdir(parents=True)
    shutil.copy(shared_directory / "speech/ravdess/Actor_01" / name, folder / name)
    config = replace(preset("scenes"), storage=tmp_path.as_uri())
    text = reproduce_real_speech(
        config, tmp_path / "speech", [], "python jobs/reproduce.py real_speech scenes"
    ).markdown()
    assert "```\npython jobs/reproduce.py real_speech scenes\n```" in text
    assert "| RAVDESS | 1 | 6 | extraction | 0.00 [0.00, 0.00] | +0.00 [+0.00, +0.00] | 0 |" in text
    written = open_storage(f"{tmp_path.as_uri()}/experiments/real_speech")
    assert written.read("table.md").decode() == text
    assert {one["way"] for one in json.loads(written.read("results.json"))["word_errors"]} == set(WAYS)


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.services
@pytest.mark.timeout(600)
def test_real_emotional_clips_from_the_recipe_to_a_probe_by_speaker(tmp_path, ray_head, shared_directory):
    """Two sentences of four actors in four emotions, spoken strongly: 32 clips, some invented at 8 s of padding."""
    source = tmp_path / "speech"
    for actor in ("01", "02", "03", "04"):
        (source / f"Actor_{actor}").mkdir(parents=True)
        for emotion in ("01-01", "03-02", "04-02", "05-02"):
            for sentence in ("01", "02"):
                name = f"Actor_{actor}/03-01-{emotion}-{sentence}-01-{actor}.flac"
                shutil.copy(shared_directory / "speech/ravdess" / name, source / name)
    storage = (tmp_path / "storage").as_uri()
    run("datasets/ravdess.py", "--source", str(source), "--dest", f"{storage}/ravdess", "--test-actors", "4")
    corpus = ["scenes", "--storage", storage, "--data.corpus", "ravdess"]
    assert "extract ravdess/train: 24/24 recordings" in run(
        "jobs/extract.py", *corpus, "--cluster.cpus-per-worker", "2"
    )
    run("jobs/emotion.py", *corpus, "--probe.folds", "speakers")

    normalise = EnglishTextNormalizer()
    said, heard = [], []
    for split in ("train", "test"):
        reader = SplitReader(open_manifest(f"{storage}/ravdess/whisper-base/{split}"))
        for _, sample in iter_split(reader, lambda sample: sample, Rejections(reader.manifest.url)):
            said.append(normalise(sample.metadata["text"]))
            heard.append(normalise(sample.metadata["transcript"]))
    assert len(said) == 32 and len(set(said)) == 2
    assert jiwer.wer(said, heard) < 0.03, heard
    results = json.loads(latest_evaluation(storage, "ravdess-emotion").read("results.json"))
    whisper, layers, text = results
    assert layers["channel"] == "layers 1-6, mean of speech frames"
    for heard_by in (whisper, layers):
        assert (heard_by["system"], heard_by["num_test"], len(heard_by["by_speaker"])) == ("whisper", 32, 4)
        assert heard_by["low"] > text["majority"] == 25.0, heard_by["accuracy"]
    assert text["accuracy"] <= 25.0, "the sentence is the same for all emotions"
