"""Checkpoints by name in MLflow's registry."""

import pytest

from brewclip.errors import UserError
from brewclip.tracking.registry import register_checkpoint, resolve_model
from brewclip.tracking.tracker import Tracker


@pytest.mark.services
def test_a_name_stands_for_the_checkpoint_that_was_registered_last(mlflow_server):
    uri, versions = mlflow_server.tracking_uri, []
    for number in (1, 2, 1):
        tracker = Tracker(uri, "registry", f"run{number}", f"file:///registry/{number}")
        assert tracker.flush()
        url = f"file:///registry/{number}/checkpoints/step-00000001"
        versions.append(register_checkpoint(uri, "spoken", "best", tracker.run_id, url, "checkpoint"))
        assert resolve_model("models:/spoken@best", uri) == url
        tracker.finish()
    assert versions == ["1", "2", "1"], "the same checkpoint is the same version"
    assert resolve_model("models:/spoken/2", uri) == "file:///registry/2/checkpoints/step-00000001"
    for name in ("models:/spoken@worst", "models:/written@best", "models:/spoken/7"):
        with pytest.raises(UserError, match=f"{name} is not registered in MLflow"):
            resolve_model(name, uri)


def test_other_texts_stay_as_they_are():
    assert resolve_model("s3://bucket/runs/a") == "s3://bucket/runs/a"
    assert resolve_model("") == ""


@pytest.mark.parametrize(
    ("name", "uri", "message"),
    [
        ("models:/brewclip", "http://127.0.0.1:9", "is no name of a registered model"),
        ("models:/brewclip@best", "", "give --tracking.uri or set MLFLOW_TRACKING_URI"),
        ("models:/brewclip@best", "http://127.0.0.1:9", "MLflow does not answer"),
    ],
)
def test_names_that_cannot_be_looked_up(name, uri, message, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=message):
        resolve_model(name, uri)
