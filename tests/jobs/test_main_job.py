"""The main job in small, by the commands that a user types: recipe, extraction, training, evaluation, report.

Real Ray, S3, MLflow, Whisper, CLIP and, where it is installed, Chromium.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load

from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.storage import open_storage
from brewclip.evaluation.folders import latest_evaluation
from brewclip.local import submit_job

CHECKOUT = Path(__file__).parents[2]
pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def storage(s3):
    return s3.create_bucket("main-job")


@pytest.fixture(scope="module")
def corpus(storage, ray_head):
    """The corpus, written by the recipe."""
    sizes = ("--num-train", "12", "--num-dev", "4", "--num-test", "12", "--captions-per-image", "1")
    return run("datasets/scenes.py", "--dest", f"{storage}/scenes", *sizes, "--samples-per-shard", "10")


@pytest.fixture(scope="module")
def extracted(corpus, storage):
    """Whisper's features of the corpus, from two workers."""
    return run("jobs/extract.py", "scenes", "--storage", storage, "--cluster.cpus-per-worker", "2")


@pytest.fixture(scope="module")
def trained(extracted, storage, ray_head, mlflow_server):
    """A run, submitted as a user does it."""
    flags = "--run.name small --run.global-batch-size 8 --optim.total-steps 12 --optim.warmup-steps 2"
    flags += " --run.eval-every-steps 6 --run.checkpoint-every-steps 6 --run.log-every-steps 3"
    lines: list[str] = []
    code = submit_job(
        ray_head,
        f"python jobs/train.py scenes --storage {storage} --tracking.uri {mlflow_server.tracking_uri} {flags}",
        CHECKOUT,
        say=lines.append,
    )
    assert code == 0, "\n".join(lines)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def report(trained, storage, mlflow_server, tmp_path_factory):
    """The report of an evaluation, as a file."""
    flags = ("--storage", storage, "--tracking.uri", mlflow_server.tracking_uri, "--systems", "zero_shot", "small")
    run("jobs/evaluate.py", "scenes", *flags)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(latest_evaluation(storage, "scenes-test-asr").read("report.html"))
    return path


def run(*words: str) -> str:
    """Run a script of the checkout and return its output."""
    done = subprocess.run(
        [sys.executable, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_recipe_and_extraction_keep_every_recording(corpus, extracted, storage):
    for split, count in (("train", 12), ("dev", 4), ("test", 12)):
        before, after = (open_manifest(f"{storage}/scenes/{folder}{split}") for folder in ("", "whisper-base/"))
        assert len(before) == len(after) == count
        assert before.summary.num_images == after.summary.num_images == count
    assert "rejected: none" in corpus


def test_transcripts_are_what_was_said(extracted, storage):
    from jiwer import wer
    from whisper.normalizers import EnglishTextNormalizer

    normalise = EnglishTextNormalizer()
    manifest = open_manifest(f"{storage}/scenes/whisper-base/train")
    samples = [
        sample
        for shard, count in enumerate(manifest.num_samples)
        for _, sample in SplitReader(manifest).load(Extent(shard, 0, int(count)))
    ]
    said, heard = ([normalise(s.metadata[name]) for s in samples] for name in ("text", "transcript"))
    assert wer(said, heard) < 0.1
    for sample in samples:
        assert sample.metadata["rejected"] is None
        assert sample.metadata["avg_logprob"] > -1


def test_a_second_call_finds_everything_done(extracted, storage):
    again = run("jobs/extract.py", "scenes", "--storage", storage)
    assert again.count("already done") == 3


def test_the_bucket_holds_checkpoints_of_what_is_trained(trained, storage):
    run_storage = open_storage(f"{storage}/runs/small")
    facts = json.loads(run_storage.read("checkpoints/step-00000012/checkpoint.json"))
    assert facts["step"] == 12
    assert facts["config"]["run.global_batch_size"] == 8
    assert len(facts["frozen_sha256"]["scenes"]) == 64
    assert facts["frozen_settings"]["scenes"]["activation"] in ("GELU", "QuickGELU")
    tensors = load(run_storage.read("checkpoints/step-00000012/model.safetensors"))
    assert {name.split(".")[0] for name in tensors} == {"prompts", "acoustic", "logit_scale"}
    assert run_storage.read("checkpoints/latest") == b"step-00000012"
    assert run_storage.read("checkpoints/best") in (b"step-00000006", b"step-00000012")


def test_mlflow_holds_the_record(trained, storage, mlflow_server):
    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (found,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{storage}/runs/small'")
    assert found.data.params["optim.total_steps"] == "12"
    assert found.data.params["model.variant"] == "brewclip"
    assert re.fullmatch(r"[0-9a-f]{64}", found.data.tags["brewclip.sha256.scenes"])
    names = ("loss", "outer", "inner", "lr", "logit_scale", "samples_per_second", "effective_negatives")
    for name in names:
        assert [point.step for point in client.get_metric_history(found.info.run_id, f"train/{name}")] == [3, 6, 9, 12]
    assert found.data.metrics["train/effective_negatives"] == 7
    assert 0 <= found.data.metrics["dev/speech_to_image/R1"] <= 100
    assert found.info.status == "FINISHED"


def test_the_evaluation_is_recorded_in_the_training_run(report, storage, mlflow_server):
    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (found,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{storage}/runs/small'")
    assert "test/image_to_speech/R10" in found.data.metrics
    results = json.loads(latest_evaluation(storage, "scenes-test-asr").read("results.json"))
    assert [one["system"] for one in results] == ["zero_shot", "small"]
    assert results[0]["num_recordings"] == results[0]["num_images"] == 12


def test_the_report_is_one_file_that_needs_no_network(report):
    text = report.read_text()
    assert not re.findall(r"""(?:src|href)=["']?https?://""", text)
    assert text.count(' id="sound-') == text.count(' id="image-') == 12


def test_the_report_in_a_browser(report, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: the report is not opened in a browser (Debian package chromium)")
    flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [chromium, *flags, "--virtual-time-budget=5000", "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    page = done.stdout
    assert "12 of 12 shown" in page
    shown = re.findall(r'<img data-id="[^"]+"[^>]*src="data:image/jpeg;base64,', page)
    assert len(shown) == 12 * (1 + 2 * 5), "the right image, and five for each of two systems"
    ranks = re.findall(r"rank (\d+)", page)
    assert len(ranks) == 24
    assert all(1 <= int(rank) <= 12 for rank in ranks)
