"""A user's mistake at a job: one clear line on stderr, exit code 2, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brewclip.checkpoints.checkpoint import save_checkpoint
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import Config, flatten
from brewclip.data.storage import open_storage
from tests.training.features import AUDIO_DIM, write_features

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]


def complaint_of(job: str, *words: str, **variables: str) -> str:
    """Run a job that must fail as a mistake, and return the one line that it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BREWCLIP", "RAY_"))}
    done = subprocess.run(
        [sys.executable, f"jobs/{job}.py", *words],
        cwd=CHECKOUT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Storage with a small extracted corpus."""
    folder = tmp_path_factory.mktemp("storage")
    write_features(f"{folder.as_uri()}/scenes/whisper-base", "train", 20)
    write_features(f"{folder.as_uri()}/scenes/whisper-base", "dev", 8)
    return folder.as_uri()


def test_unknown_preset():
    assert "unknown preset 'flickr9k': did you mean 'flickr8k'" in complaint_of("train", "flickr9k")


def test_help_that_nobody_reads_to_its_end():
    job = [sys.executable, "jobs/train.py", "--help"]
    with subprocess.Popen(job, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_help_lists_the_ranges_of_numbers():
    done = subprocess.run([sys.executable, "jobs/train.py", "--help"], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    assert "--model.dropout                 0..1, below 1\n" in done.stdout


def test_unknown_flag():
    assert "did you mean --optim.peak-lr?" in complaint_of("train", "scenes", "--optim.peek-lr", "1")


def test_test_split_for_selection():
    assert "never chosen on test" in complaint_of("train", "scenes", "--data.dev-split", "test")


def test_corpus_that_was_not_extracted(tmp_path):
    line = complaint_of("train", "scenes", "--storage", tmp_path.as_uri())
    assert "no whole split at" in line
    assert "write or extract it first" in line


def test_corpus_that_was_not_written(tmp_path):
    assert "no whole split at" in complaint_of("extract", "scenes", "--storage", tmp_path.as_uri())


def test_fewer_samples_than_the_batch(features):
    line = complaint_of("train", "scenes", "--storage", features, "--run.global-batch-size", "64")
    assert "has 40 samples, fewer than one global batch of 64" in line


def test_more_workers_than_lanes(features):
    flags = ("--run.global-batch-size", "10", "--cluster.num-workers", "11")
    assert "must be 1..10" in complaint_of("train", "scenes", "--storage", features, *flags)


def test_a_run_of_other_settings(features):
    config = flatten(Config())
    facts = CheckpointFacts(step=1, config=config | {"optim.peak_lr": 0.5}, frozen_sha256={}, audio_dim=AUDIO_DIM)
    save_checkpoint(open_storage(f"{features}/runs/other"), Checkpoint(facts, {}, {}), best=True, keep=1)
    flags = ("--storage", features, "--run.name", "other", "--run.global-batch-size", "10")
    line = complaint_of("train", "scenes", *flags)
    assert "run 'other' was started with" in line
    assert "--run.fresh" in line


def test_a_checkpoint_of_another_clip(features):
    facts = CheckpointFacts(step=1, config=flatten(Config()), frozen_sha256={}, audio_dim=AUDIO_DIM)
    save_checkpoint(open_storage(f"{features}/runs/vit"), Checkpoint(facts, {}, {}), best=True, keep=1)
    line = complaint_of("evaluate", "scenes", "--storage", features, "--split", "dev", "--systems", "vit")
    assert "was trained with --model.clip ViT-L-14/openai, here it is scenes" in line


def test_a_checkpoint_that_is_not_there(features):
    line = complaint_of("evaluate", "scenes", "--storage", features, "--split", "dev", "--systems", "nothing")
    assert "no checkpoint at" in line


@pytest.mark.services
@pytest.mark.parametrize(
    ("variables", "bucket_name", "message"),
    [
        ({}, "no-such-bucket", "bucket 'no-such-bucket' does not exist"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "S3 refuses the key"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, None, "cannot be reached"),
    ],
    ids=["missing bucket", "wrong key", "unreachable"],
)
def test_storage_that_cannot_be_used(bucket, variables, bucket_name, message):
    url = f"s3://{bucket_name}" if bucket_name else bucket
    assert message in complaint_of("train", "scenes", "--storage", url, **variables)
