"""Thirty steps of the preset `scenes` on one and on two workers give the figures that are stored here.

A change that is meant to move or rename code must not move them. `python tests/training/test_stored_figures.py`
writes them anew; do so only with a change of the method, and say so in docs/LOG.md.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.training.features import write_features
from tests.training.runs import TrainingJob

FIGURES = Path(__file__).with_name("stored_figures.json")
KEYS = ("train/loss", "train/grad_norm", "dev/speech_to_image/R1", "dev/image_to_speech/R1")
STEPS = 30


def run_figures(folder: Path, num_workers: int, uri: str) -> dict[str, dict[str, float]]:
    """Return each metric's value by step, of a new run below `folder` that is recorded at a tracking URI."""
    import mlflow

    storage = folder.as_uri()
    write_features(f"{storage}/scenes/whisper-base", "train", 30)
    write_features(f"{storage}/scenes/whisper-base", "dev", 20)
    flags = ("--tracking.uri", uri, "--cluster.num-workers", str(num_workers), "--run.eval-every-steps", "10")
    job = TrainingJob(storage, "figures", folder / "log", *flags, "--optim.total-steps", str(STEPS))
    assert job.wait() == 0, job.log.read_text()[-3000:]
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{job.run_url}'")
    return {
        key: {str(point.step): point.value for point in client.get_metric_history(run.info.run_id, key)} for key in KEYS
    }


@pytest.mark.services
@pytest.mark.parametrize("num_workers", [1, 2])
def test_thirty_steps_give_the_stored_figures(num_workers: int, ray_head, mlflow_server, tmp_path) -> None:
    figures = run_figures(tmp_path, num_workers, mlflow_server.tracking_uri)
    assert len(figures["train/loss"]) == len(figures["train/grad_norm"]) == STEPS
    stored = json.loads(FIGURES.read_text())[str(num_workers)]
    assert set(figures) == set(stored)
    for key, expected in stored.items():  # processors differ in the last bits
        assert figures[key] == pytest.approx(expected, rel=1e-4), key


if __name__ == "__main__":  # writes the figures: FOLDER, which must be empty
    folders = [Path(sys.argv[1]).resolve() / str(num_workers) for num_workers in (1, 2)]
    for folder in folders:
        folder.mkdir(parents=True)
    figures = {
        folder.name: run_figures(folder, int(folder.name), f"sqlite:///{folder}/mlflow.db") for folder in folders
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
