"""Real recordings and real images by the command line, over Ray and S3: from a table, and from shards to a model."""

import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import soundfile
import webdataset
from PIL import Image

from brewclip.data import as_webdataset
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import exists, open_storage
from brewclip.evaluation.folders import latest_evaluation
from brewclip.local import RayHead
from tests.datasets.miniatures import CHECKOUT

pytestmark = pytest.mark.services


def write_digits(folder: Path, speech: Path, takes: str) -> Path:
    """Write a table: each digit, spoken by each speaker, with an own image of that digit.

    Takes of one speaker and digit are captions of one image.
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
    failed = run(*recipe(tmp_path / "far.jsonl", f"{bucket}/c"))  # found on a worker, reported as one line
    assert failed.returncode == 2
    assert "error: storage URL 'https://host' must be s3://" in failed.stderr
    assert "Traceback" not in failed.stderr


def write_mp3s(folder: Path, clips: list[Path]) -> Path:
    """Write a table of recordings alone, as MP3, every fifth one half."""
    rows = [["audio", "split"]]
    for number, path in enumerate(clips):
        buffer = io.BytesIO()
        soundfile.write(buffer, *soundfile.read(path), format="MP3", subtype="MPEG_LAYER_III")
        data = buffer.getvalue()
        (folder / f"{path.stem}.mp3").write_bytes(data[: len(data) // 2] if number % 5 == 0 else data)
        rows.append([f"{path.stem}.mp3", "train"])
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "t.csv"


def open_tars(head: RayHead) -> set[str]:
    """Return the temporary tars that workers of this head are writing."""
    assert head.process is not None
    found = set()
    for process in psutil.Process(head.process.supervisor.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found |= {file.path for file in process.open_files() if file.path.endswith(".tar")}
    return found


def test_ctrl_c_and_mp3_leave_one_line_each(
    tmp_path: Path, ray_head: RayHead, bucket: str, shared_directory: Path
) -> None:
    table = write_mp3s(tmp_path, sorted((shared_directory / "speech/ravdess").glob("*/*.flac"))[::2])
    command = [*recipe(table, f"{bucket}/mp3"), "--image-column", ""]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    tars: set[str] = set()
    deadline = time.monotonic() + 120
    while not tars and time.monotonic() < deadline and process.poll() is None:
        tars = open_tars(ray_head)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (
        130,
        "interrupted: finished shards are kept, the same command continues\n",
    )
    assert tars and not any(Path(tar).exists() for tar in tars) and not open_tars(ray_head)

    again = run(*command)
    assert (again.returncode, again.stderr) == (0, "")
    assert "mpg123" not in again.stdout
    (line,) = [line for line in again.stdout.splitlines() if "MP3" in line]
    assert line.startswith("mp3/train: the MP3 decoder gave ") and "recordings, which are used" in line
    assert open_manifest(f"{bucket}/mp3/train").summary.details["damaged"] == 24


def write_shards(folder: Path, speech: Path) -> list[str]:
    """Write the digits as other people's shards, a few for each speaker; return what --source says of them."""
    from sklearn.datasets import load_digits

    digits, sources = load_digits(), []
    for split, speaker in (("train", "jackson"), ("dev", "nicolas"), ("test", "theo")):
        sources.append(f"{split}={folder}/{speaker}-*.tar")
        with webdataset.ShardWriter(f"{folder}/{speaker}-%02d.tar", maxcount=4, verbose=0) as writer:
            for number, path in enumerate(sorted(speech.glob(f"?_{speaker}_0.wav"))):
                digit = int(path.stem[0])
                pixels = digits.images[digits.target == digit][number + 40 * len(sources)]
                image = Image.fromarray((255 - 15 * pixels).astype("uint8")).resize((96, 96))
                text = {"caption": digits.target_names[digit].item(), "speaker": speaker}
                writer.write({"__key__": f"{digit}/{path.stem}", "png": image, "wav": path.read_bytes(), "json": text})
    return sources


SLOW_SHARD = """
import sys, time
from brewclip.cluster import connect
from brewclip.data.schema import BadSample
from brewclip.corpora.shard_tasks import ShardTask, run_tasks

class Slow:
    def make_sample(self, item):
        time.sleep(0.5)
        raise BadSample("slow", item)

connect()
counts = []
tasks = [ShardTask(sys.argv[1], "a.tar", 0, list("abcdefgh"), "plan")]
for _, record, notes in run_tasks(Slow(), tasks, counts.append):
    print(sum(counts), len(notes.rejected), len([count for count in counts if count]) > 2)
"""


def test_progress_advances_within_a_shard(tmp_path: Path, ray_head: RayHead) -> None:
    done = run("-c", SLOW_SHARD, tmp_path.as_uri())
    assert (done.stdout, done.returncode) == ("8 8 True\n", 0), done.stderr


@pytest.mark.timeout(600)
def test_30_real_recordings_in_shards_become_a_trained_and_evaluated_model(
    tmp_path: Path, ray_head, bucket: str, shared_directory: Path
) -> None:
    sources = write_shards(tmp_path, shared_directory / "speech/digits")
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
        ["datasets/shards.py", "--source", *sources, "--dest", f"{bucket}/digits"],
        ["jobs/verify.py", f"{bucket}/digits/test"],
        ["jobs/extract.py", *corpus, "--cluster.cpus-per-worker", "4"],  # one worker, which loads Whisper once
        ["jobs/train.py", *corpus, *short],
        ["jobs/evaluate.py", *corpus, "--systems", "zero_shot", "digits-brewclip-0"],
    ):
        done = run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    results = latest_evaluation(bucket, "digits-test-asr")
    assert b"digits-brewclip-0" in results.read("results.json")
    assert open_manifest(f"{bucket}/digits/whisper-base/test").summary.num_samples == 10
    assert not [name for name in open_storage(f"{bucket}/digits").list_names("train/") if name.endswith(".tar")]
    for folder, extension in (("digits/test", "wav"), ("digits/whisper-base/test", "npy")):
        samples = list(as_webdataset(f"{bucket}/{folder}").decode())
        assert [sample["json"]["speaker"] for sample in samples] == ["theo"] * 10
        assert all(extension in sample for sample in samples)
