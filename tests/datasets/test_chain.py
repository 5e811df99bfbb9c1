"""Real recordings and real pictures through the table recipe's command line, over Ray and S3, to a trained model."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from brewclip.analysis.folders import latest_evaluation
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import exists, open_storage
from tests.datasets.miniatures import CHECKOUT

pytestmark = pytest.mark.services


def write_digits(folder: Path, speech: Path, takes: str) -> Path:
    """Write a table: each digit, spoken by each speaker, with a picture of its own of that digit.

    Takes of one speaker and digit are captions of one picture.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = [["image", "audio", "text", "image_id", "speaker", "split"]]
    used: dict[str, str] = {}
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for path in sorted(speech.glob(f"*_{takes}.wav")):
        digit, speaker, _ = path.stem.split("_")
        image_id = f"{digit}-{speaker}"
        if image_id not in used:
            nth = sum(name.startswith(f"{digit}-") for name in used)
            pixels = digits.images[digits.target == int(digit)][nth]
            used[image_id] = f"{image_id}.png"
            Image.fromarray((255 - 15 * pixels).astype("uint8")).resize((96, 96)).save(folder / used[image_id])
        split = {"jackson": "train", "nicolas": "dev", "theo": "test"}[speaker]
        rows.append([used[image_id], str(path), words[int(digit)], image_id, speaker, split])
    with open(folder / "digits.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "digits.csv"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=CHECKOUT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def recipe(table: Path, dest: str, *flags: str) -> list[str]:
    return ["datasets/table.py", "--source", str(table), "--dest", dest, "--samples-per-shard", "5", *flags]


def test_120_real_recordings_are_written_interrupted_and_written_again(
    tmp_path: Path, ray_head, bucket: str, shared_directory: Path
) -> None:
    table = write_digits(tmp_path, shared_directory / "speech/digits", "?")
    process = subprocess.Popen(
        [sys.executable, *recipe(table, f"{bucket}/a/digits")],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    first, deadline = open_storage(f"{bucket}/a/digits/train"), time.monotonic() + 120
    while not first.list_names("parts/") and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not exists(open_storage(f"{bucket}/a/digits/test"), "manifest.json")

    again = run(*recipe(table, f"{bucket}/a/digits"))
    assert again.returncode == 0, again.stderr
    rows = [line.split() for line in again.stdout.splitlines()[-3:]]
    assert [row[:3] for row in rows] == [["train", "40", "10"], ["dev", "40", "10"], ["test", "40", "10"]]
    fresh = run(*recipe(table, f"{bucket}/b/digits"))
    assert fresh.returncode == 0, fresh.stderr
    for split in ("train", "dev", "test"):
        one, other = (open_storage(f"{bucket}/{run}/digits/{split}") for run in "ab")
        assert one.list_names() == other.list_names()
        assert all(one.read(name) == other.read(name) for name in one.list_names())
    assert open_manifest(f"{bucket}/a/digits/train").summary.num_rounds == 4

    refused = run(*recipe(table, f"{bucket}/a/digits", "--split", "validation"))
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --split 'validation': digits has the splits train, dev, test\n",
    )

    (tmp_path / "far.jsonl").write_text('{"image": "a.jpg", "audio": "https://host/b.wav", "split": "train"}')
    failed = run(*recipe(tmp_path / "far.jsonl", f"{bucket}/c"))  # found on a worker, told as one line
    assert failed.returncode == 2
    assert "error: storage URL 'https://host' must be s3://" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.timeout(600)
def test_120_real_recordings_become_a_trained_and_evaluated_model(
    tmp_path: Path, ray_head, bucket: str, shared_directory: Path
) -> None:
    table = write_digits(tmp_path, shared_directory / "speech/digits", "?")
    corpus = ["scenes", "--storage", bucket, "--data.corpus", "digits"]
    flags = {
        "--run.global-batch-size": "8",
        "--run.eval-every-steps": "3",
        "--run.checkpoint-every-steps": "3",
        "--optim.total-steps": "3",
        "--optim.warmup-steps": "1",
        "--cluster.num-workers": "1",
    }
    short = [word for flag in flags.items() for word in flag]
    for words in (
        recipe(table, f"{bucket}/digits"),
        ["jobs/extract.py", *corpus],
        ["jobs/train.py", *corpus, *short],
        ["jobs/evaluate.py", *corpus, "--systems", "zero_shot", "digits-brewclip-0"],
    ):
        done = run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    results = latest_evaluation(bucket, "digits-test-asr")
    assert b"digits-brewclip-0" in results.read("results.json")
    assert open_manifest(f"{bucket}/digits/whisper-base/test").summary.num_samples == 40
