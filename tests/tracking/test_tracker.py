"""Records reach MLflow in order, through an outage, and into the same run after a restart."""

import time
from pathlib import Path

import mlflow
import pytest

from brewclip.errors import UserError
from brewclip.tracking.registry import resolve_model
from brewclip.tracking.tracker import Tracker, describe_environment, supersede

pytestmark = pytest.mark.services


def runs_of(server, url):
    client = mlflow.MlflowClient(server.tracking_uri)
    experiment = client.get_experiment_by_name("tracking")
    return client, client.search_runs([experiment.experiment_id], f"tags.`brewclip.run_url` = '{url}'")


def test_an_outage_delays_records_and_loses_none(mlflow_server):
    tracker = Tracker(mlflow_server.tracking_uri, "tracking", "outage", "file:///outage")
    tracker.log_metrics({"loss": 0.0}, 0)
    deadline = time.monotonic() + 60
    while not tracker.run_id and time.monotonic() < deadline:
        time.sleep(0.1)
    mlflow_server.stop()
    started = time.monotonic()
    for step in range(1, 50):
        tracker.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - started < 1.0, "training must not wait for MLflow"
    mlflow_server.start()
    assert tracker.finish() == 0
    client, (run,) = runs_of(mlflow_server, "file:///outage")
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [
        float(n) for n in range(50)
    ]
    assert run.info.status == "FINISHED"


def test_a_restarted_run_is_continued_and_a_fresh_one_is_new(mlflow_server, tmp_path):
    uri, url = mlflow_server.tracking_uri, "file:///restarted"
    for step in (1, 2):
        tracker = Tracker(uri, "tracking", "restarted", url)
        tracker.log_params({"seed": 0})
        tracker.log_metrics({"loss": 1.0}, step)
        tracker.log_text("rows", "bad_samples/list.txt")
        tracker.log_bytes(b"\x00\xff", "checkpoint/weights.bin")
        assert tracker.flush()
        assert tracker.finish() == 0
    client, (run,) = runs_of(mlflow_server, url)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    fetched = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="checkpoint/weights.bin", tracking_uri=uri, dst_path=str(tmp_path)
    )
    assert Path(fetched).read_bytes() == b"\x00\xff"
    supersede(uri, "tracking", url)
    tracker = Tracker(uri, "tracking", "restarted", url)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.finish()
    assert len(runs_of(mlflow_server, url)[1]) == 2


def test_metrics_are_added_to_a_run_by_its_id_and_its_status_stays(mlflow_server):
    uri, url = mlflow_server.tracking_uri, "file:///trained"
    trained = Tracker(uri, "tracking", "trained", url)
    trained.log_metrics({"loss": 1.0}, 1)
    trained.finish("KILLED")
    later = Tracker(uri, "elsewhere", "trained", url, run_id=trained.run_id)
    later.log_metrics({"test/R1": 50.0}, 1)
    assert later.finish(status="") == 0
    _, (run,) = runs_of(mlflow_server, url)
    assert run.info.status == "KILLED" and run.data.metrics["test/R1"] == 50.0


def test_what_never_arrives_is_counted(capsys):
    tracker = Tracker("http://127.0.0.1:9", "tracking", "nowhere", "file:///nowhere")
    tracker.log_metrics({"loss": 1.0}, 1)
    assert not tracker.flush(wait_seconds=0.5)
    assert tracker.finish(wait_seconds=1.0) >= 1
    assert "records were not delivered to http://127.0.0.1:9" in capsys.readouterr().err


def test_a_refused_login_is_no_outage(mlflow_server, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a password of before")
    tracker = Tracker(mlflow_server.tracking_uri, "tracking", "refused", "file:///refused")
    tracker.log_metrics({"loss": 1.0}, 1)
    started = time.monotonic()
    assert not tracker.flush()
    assert tracker.finish() == 0
    assert time.monotonic() - started < 20
    lines = capsys.readouterr().err.splitlines()
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in lines[0] and len(lines) == 2
    with pytest.raises(UserError, match="it asks for a login"):
        resolve_model("models:/brewclip@best", mlflow_server.tracking_uri)


def test_without_a_uri_nothing_happens():
    tracker = Tracker("", "tracking", "none", "file:///none")
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.finish() == 0


def test_the_environment_says_how_to_repeat_the_run():
    tags = describe_environment()
    assert tags["brewclip.command"].startswith("python ")
    assert {"brewclip.git_commit", "brewclip.version.torch", "brewclip.version.ray"} < set(tags)
