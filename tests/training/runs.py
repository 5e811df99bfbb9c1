"""Starting real training jobs in tests, watching how far they are, and reading what they left."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from brewclip.checkpoints.checkpoint import load_checkpoint
from brewclip.checkpoints.facts import Checkpoint
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing

CHECKOUT = Path(__file__).parents[2]
STEPS = 120


class TrainingJob:
    """`python jobs/train.py scenes ...` as a process of its own, with its output kept.

    Args:
        storage: base URL; the features are below it.
        name: of the run.
        log: file that gets the output; appended to.
        flags: further flags.
    """

    def __init__(self, storage: str, name: str, log: Path, *flags: str) -> None:
        self.run_url = f"{storage}/runs/{name}"
        self.log = log
        command = [
            *(sys.executable, "jobs/train.py", "scenes", "--storage", storage, "--run.name", name),
            *("--optim.total-steps", str(STEPS), "--optim.warmup-steps", "5", "--run.global-batch-size", "12"),
            *("--run.log-every-steps", "1", "--run.eval-every-steps", "30", "--run.checkpoint-every-steps", "4"),
            *("--cluster.cpus-per-worker", "1", *flags),
        ]
        with open(log, "a") as output:
            self.process = subprocess.Popen(
                command, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, seconds: float = 480.0) -> int:
        """Return the exit code; the output is shown if it takes too long."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.log.read_text()[-3000:]}") from None

    def step(self) -> int:
        """Return the step of the latest checkpoint, 0 without one."""
        try:
            return int(open_storage(self.run_url).read("checkpoints/latest").decode().removeprefix("step-"))
        except ObjectMissing:
            return 0

    def wait_for_step(self, step: int, seconds: float = 300.0) -> None:
        """Return when a checkpoint of the step or a later one is there."""
        deadline = time.monotonic() + seconds
        while self.step() < step:
            assert self.process.poll() is None, f"ended before step {step}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"no step {step} after {seconds} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def checkpoint(self) -> Checkpoint:
        """Return the latest checkpoint."""
        checkpoint = load_checkpoint(open_storage(self.run_url))
        assert checkpoint is not None
        return checkpoint

    def recorded(self, tracking_uri: str) -> tuple[Any, list[Any]]:
        """Return the run in MLflow, and its points of `train/loss`: a step that was done again has several."""
        import mlflow

        client = mlflow.MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name("brewclip").experiment_id
        (run,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{self.run_url}'")
        return run, client.get_metric_history(run.info.run_id, "train/loss")


def training_workers(of: Callable[[psutil.Process], bool] = lambda process: True) -> list[psutil.Process]:
    """Return the processes of Ray Train's workers that a condition holds for, of the clusters of these tests alone."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if words and words[0].startswith("ray::") and "RayTrainWorker" in words[0] and of(process):
                found.append(process)
    return found
