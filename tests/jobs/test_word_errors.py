"""The word error job as a user runs it: what it prints and keeps, and a split without texts in one line."""

import json
import subprocess
import sys

import pytest

from brewclip.evaluation.folders import latest_evaluation
from tests.data.splits import write_split
from tests.jobs.test_mistakes import CHECKOUT, complaint_of
from tests.training.features import write_features


@pytest.mark.slow
def test_a_split_without_texts(tmp_path):
    write_split(f"{tmp_path.as_uri()}/scenes/whisper-base/test", [[3]])
    line = complaint_of("word_errors", "scenes", "--storage", tmp_path.as_uri())
    assert "none of the 3 samples" in line and "ground-truth text" in line


@pytest.mark.services
def test_the_job_prints_and_keeps(tmp_path, ray_head):
    url = tmp_path.as_uri()
    write_features(f"{url}/scenes/whisper-base", "test", 9)
    done = subprocess.run(
        [sys.executable, "jobs/word_errors.py", "scenes", "--storage", url],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WER of the corpus in %" in done.stdout
    kept = latest_evaluation(url, "scenes-test-asr-word_errors")
    record = json.loads(kept.read("results.json"))
    assert record["counts"]["utterances"] == len(record["utterances"]) == 18
    # "scene 3" was transcribed as "a scene of number 3": three words inserted for two spoken, in every utterance.
    assert record["counts"]["corpus_wer"] == pytest.approx(150.0)
    assert record["systems"][0]["problem"] == "no slope: all 18 values are equal"
    assert kept.read("word_errors.png").startswith(b"\x89PNG")
    assert b"no slope" in kept.read("table.md")
