"""The emotion job as a user runs it: what it prints and keeps, and mistakes in one line."""

import json
import subprocess
import sys

import mlflow
import pytest

from brewclip.evaluation.folders import latest_evaluation
from tests.jobs.test_mistakes import CHECKOUT, complaint_of
from tests.studies.clips import write_clips


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Storage with clips that tell their emotions, of other speakers in each split."""
    url = tmp_path_factory.mktemp("storage").as_uri()
    write_clips(f"{url}/clips/whisper-base", "train", ["ann", "bob", "cid"])
    write_clips(f"{url}/clips/whisper-base", "test", ["dan"])
    return url


@pytest.mark.slow
def test_mistakes_are_one_line(storage):
    flags = ("--storage", storage, "--data.corpus", "clips")
    assert "--probe.mask-fraction 1.5 must be 0..1, below 1" in complaint_of(
        "emotion", "scenes", *flags, "--probe.mask-fraction", "1.5"
    )
    assert "no checkpoint at" in complaint_of("emotion", "scenes", *flags, "--systems", "nothing")


@pytest.mark.services
def test_the_job_prints_keeps_and_records(storage, mlflow_server):
    flags = ["--storage", storage, "--data.corpus", "clips", "--tracking.uri", mlflow_server.tracking_uri]
    done = subprocess.run(
        [sys.executable, "jobs/emotion.py", "scenes", *flags, "--methods", "probe", "finetune"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "zero_shot: nothing to finetune, left out" in done.stdout
    assert "majority in %" in done.stdout and done.stdout.count("true \\ predicted") == 2
    kept = latest_evaluation(storage, "clips-emotion")
    results = json.loads(kept.read("results.json"))
    assert [(one["system"], one["channel"]) for one in results] == [("whisper", "mean frame"), ("zero_shot", "text")]
    assert results[0]["accuracy"] > results[1]["accuracy"] == results[1]["majority"] == 50.0
    assert b"| whisper | mean frame | probe |" in kept.read("table.md")
    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (found,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{kept.url}'")
    assert found.data.metrics["zero_shot/probe/text/accuracy"] == 50.0
