"""Samples that cannot be used are counted over all workers and listed in MLflow; too many stop the run."""

import json
from pathlib import Path

import mlflow
import pytest

from tests.training.features import write_features
from tests.training.runs import TrainingJob

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]
FLAGS = ("--optim.total-steps", "8", "--run.eval-every-steps", "8")


@pytest.fixture(scope="module")
def storage(s3):
    """A bucket with features; the JPEGs of four samples of train and one of dev are broken."""
    url = s3.create_bucket("bad-samples")
    write_features(f"{url}/scenes/whisper-base", "train", 24, broken=(2, 3, 11, 20))
    write_features(f"{url}/scenes/whisper-base", "dev", 8, broken=(5,))
    return url


def test_they_are_counted_and_listed(storage, ray_head, mlflow_server, tmp_path):
    """Eight batches of 12 are two epochs of 48 samples: each broken one is met twice."""
    job = TrainingJob(storage, "bad", tmp_path / "log", "--tracking.uri", mlflow_server.tracking_uri, *FLAGS)
    assert job.wait() == 0, job.log.read_text()[-3000:]
    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{job.run_url}'")
    assert run.data.metrics["data/bad/image"] >= 8  # what was decoded ahead of the last step counts as well
    assert run.data.metrics["dev/bad_samples"] == 1
    assert run.data.metrics["train/tflops"] > 0 and run.data.metrics["train/peak_memory_gb"] > 0.1
    assert "train/mfu" not in run.data.metrics  # the peak of a CPU is not known
    assert "for the backward pass of a batch" in job.log.read_text()
    path = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{run.info.artifact_uri}/bad_samples/from_step_0.jsonl",
        dst_path=str(tmp_path),
        tracking_uri=mlflow_server.tracking_uri,
    )
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert {(row["shard"], row["index"]) for row in rows} == {
        ("train-00-000000.tar", 2),
        ("train-00-000000.tar", 3),
        ("train-00-000000.tar", 11),
        ("train-00-000001.tar", 0),
    }
    assert {row["cause"] for row in rows} == {"image"}


def test_too_many_stop_the_run_with_their_list(storage, ray_head, tmp_path):
    job = TrainingJob(
        storage, "too-many", tmp_path / "log", "--data.max-bad-fraction", "0", "--tracking.uri", "", *FLAGS
    )
    assert job.wait() == 2
    (line,) = [line for line in job.log.read_text().splitlines() if line.startswith("error: ")]
    assert "cannot be used {'image': " in line
    assert "train-00-000000.tar #" in line
