"""Real speech: word errors beside whisper.transcribe, and emotional clips from the recipe to a probe by speaker."""

import json
import os
import shutil
import subprocess
import sys

import jiwer
import numpy as np
import pytest
from whisper.normalizers import EnglishTextNormalizer

from brewclip.analysis.folders import latest_evaluation
from brewclip.config import UserError
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.experiments.real_speech import TRANSCRIBE, WAYS, SpokenClip, load_kinds, measure_word_errors
from tests.datasets.miniatures import CHECKOUT

NO_SOUND = np.zeros(0, np.float32)


def test_word_errors_by_hand():
    clips = [SpokenClip("a", "Dogs are sitting.", NO_SOUND), SpokenClip("b", "seven", NO_SOUND)]
    heard = {WAYS[0]: ["dogs are sitting", "7"], TRANSCRIBE: ["Dogs were sitting!", ""]}
    ours, theirs = measure_word_errors("made up", clips, heard, {WAYS[0]: 0})
    assert (ours.rate[0], theirs.rate[0]) == (0.0, 50.0)
    assert ours.above_transcribe[0] == -50.0
    assert ours.num_words == 4


def test_a_folder_without_speech_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds none of"):
        load_kinds(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        load_kinds(tmp_path / "nothing")


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
    assert "extract ravdess/train: 24/24 recordings" in run("jobs/extract.py", *corpus)
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
    results = json.loads(latest_evaluation(storage, "ravdess-emotion").read("emotion.json"))
    whisper, text = results
    assert (whisper["system"], whisper["num_test"], len(whisper["by_speaker"])) == ("whisper", 32, 4)
    assert whisper["low"] > text["majority"] == 25.0, whisper["accuracy"]
    assert text["accuracy"] <= 25.0, "the sentence is the same for all emotions"
