"""What Kubernetes does to pods, done to a real Ray of several nodes: the run finishes as if nothing had happened.

A worker's pod is ended with notice and grace, another one is lost, the submitter is lost, and at last the head with
all that ran on it; the RayJob's retry then makes a new cluster and submits the same command again.
"""

import contextlib
import os
import re
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from brewclip.checkpoints.checkpoint import load_checkpoint
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing
from brewclip.local import RayHead
from brewclip.local.processes import program_path, server_environment
from tests.k8s.manifests.check import render
from tests.k8s.manifests.pods import pods_of
from tests.k8s.nodes import PodOfWorker, own_session, wait_for
from tests.k8s.overlays import CHECKOUT, filled_in
from tests.training.features import write_features

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]

STEPS, EVERY_STEPS = 360, 20
TRAINING = {
    "MLFLOW_TRACKING_URI": "",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}


class Cluster:
    """A Ray cluster as KubeRay makes it: a head that runs no task, and two workers with room for one place each."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.head = RayHead(folder, num_cpus=0, environment=environment)
        self.head.start()
        self.names = iter(f"{folder.name}-worker-{number}" for number in range(9))
        self.workers = [self.add_worker(), self.add_worker()]

    def add_worker(self) -> PodOfWorker:
        """Start the pod of a worker."""
        variables = self.environment | self.head.environment()
        return PodOfWorker(next(self.names), self.head.address, 2, self.folder, variables)

    def replace(self, worker: PodOfWorker) -> None:
        """Put a new pod into the place of one that is gone."""
        self.workers[self.workers.index(worker)] = self.add_worker()

    def submit(self, entrypoint: str, submission: str, log: Path) -> int:
        """Start the submitter as KubeRay does, and return its process id: submit what is new, then follow it."""
        address = f"--address={self.head.dashboard_url}"
        ray = shlex.quote(program_path("ray"))
        script = (
            f"if ! {ray} job status {address} {submission} >/dev/null 2>&1; then {ray} job submit {address} "
            f"--no-wait --submission-id {submission} -- {entrypoint}; fi; "
            f"{ray} job logs {address} --follow {submission}"
        )
        variables = server_environment(self.head.environment())
        return own_session(["bash", "-c", script], variables, log, self.folder).pid

    def job_status(self, submission: str) -> str:
        """Return what Ray says of the job."""
        return self.head.request(f"/api/jobs/{submission}").get("status", "UNKNOWN")

    def lose(self) -> None:
        """Kill the head and the workers at once."""
        assert self.head.process is not None
        for process in self.head.process.descendants()[1:]:  # not the supervisor, which tidies up
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for worker in self.workers:
            worker.kill()
        self.head.stop()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.head.stop()


@pytest.fixture
def manifest(tmp_path):
    """The worker's pod and the training job of the overlay `kind`."""
    documents = render(filled_in(tmp_path) / "kind")
    (job,) = (one for one in documents if one["kind"] == "RayJob" and one["metadata"]["name"] == "train")
    (worker,) = (pod for pod in pods_of([job]) if pod.ray == "worker")
    return job["spec"], worker.spec


def test_a_run_survives_what_kubernetes_does_to_it(manifest, s3, tmp_path, monkeypatch):
    job, pod = manifest
    storage = s3.create_bucket("drill")
    for split, count in (("train", 30), ("dev", 8)):
        write_features(f"{storage}/scenes/whisper-base", split, count)
    environment = s3.environment() | {"BREWCLIP_STORAGE": storage} | TRAINING
    monkeypatch.chdir(CHECKOUT)  # the image's working directory, in which Ray starts the job's command
    entrypoint = job["entrypoint"].replace("--cluster.num-workers 1", "--cluster.num-workers 2")
    entrypoint = entrypoint.replace("--cluster.min-workers 1", "--cluster.min-workers 0")
    entrypoint += f" --optim.total-steps {STEPS} --optim.warmup-steps 5 --run.global-batch-size 12"
    entrypoint += f" --run.log-every-steps 5 --run.eval-every-steps {STEPS // 2}"
    entrypoint += f" --run.checkpoint-every-steps {EVERY_STEPS} --cluster.cpus-per-worker 2"
    pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    log, run = tmp_path / "submitter.log", open_storage(f"{storage}/runs/scenes-brewclip-0")

    def text() -> str:
        return log.read_text()

    def step() -> int:
        try:
            return int(run.read("checkpoints/latest").decode().removeprefix("step-"))
        except ObjectMissing:
            return 0

    (tmp_path / "first").mkdir()
    cluster = Cluster(tmp_path / "first", environment)
    try:
        submitter = cluster.submit(entrypoint, "train-1", log)
        wait_for(lambda: step() >= EVERY_STEPS, text)

        # 1. A worker's pod is asked to end: notice, SIGTERM, and a new pod in its place.
        worker = cluster.workers[0]
        before_notice, notice = step(), "a machine will go, writing a checkpoint"
        grace_seconds = pod["terminationGracePeriodSeconds"]
        said = worker.end(pre_stop, CHECKOUT, grace_seconds, lambda: notice in text() and step() > before_notice)
        assert said.startswith("Ray was notified that node "), said
        wait_for(lambda: notice in text(), text)
        after_notice = step()
        assert after_notice >= EVERY_STEPS
        cluster.replace(worker)
        wait_for(lambda: step() >= after_notice + EVERY_STEPS, text)

        # 2. Another one is lost without a word.
        cluster.workers[1].kill()
        lost_at = step()
        cluster.replace(cluster.workers[1])

        # 3. The submitter is lost: the job goes on, and the next submitter follows it.
        os.killpg(submitter, signal.SIGKILL)
        wait_for(lambda: step() >= lost_at + EVERY_STEPS, text)
        assert cluster.job_status("train-1") == "RUNNING"
        submitter = cluster.submit(entrypoint, "train-1", tmp_path / "second-submitter.log")
        wait_for(lambda: "step" in (tmp_path / "second-submitter.log").read_text(), text)

        # 4. The head is lost, and with it everything: a new cluster, the same command.
        os.killpg(submitter, signal.SIGKILL)
        cluster.lose()
        stopped_at = step()
        assert stopped_at < STEPS
        (tmp_path / "second").mkdir()
        cluster = Cluster(tmp_path / "second", environment)
        cluster.submit(entrypoint, "train-2", log)
        wait_for(lambda: cluster.job_status("train-2") == "SUCCEEDED", text)
        wait_for(lambda: f"done: step {STEPS}" in text(), text, 20)
        disturbed = load_checkpoint(run)
        repeated = losses(text() + (tmp_path / "second-submitter.log").read_text())

        cluster.submit(entrypoint.replace("scenes-brewclip-0", "undisturbed"), "train-3", tmp_path / "calm")
        wait_for(lambda: cluster.job_status("train-3") == "SUCCEEDED", (tmp_path / "calm").read_text)
        time.sleep(1)
    finally:
        cluster.close()
    calm = load_checkpoint(open_storage(f"{storage}/runs/undisturbed"))
    assert disturbed.facts.step == calm.facts.step == STEPS
    assert f"step {stopped_at} of {STEPS}, 2 workers" in text(), "the new cluster went on from the last checkpoint"
    for name, tensor in calm.model.items():
        assert torch.equal(disturbed.model[name], tensor), name
    undisturbed = losses((tmp_path / "calm").read_text())
    assert undisturbed
    for number, found in repeated.items():
        assert found == undisturbed[number], f"step {number}"


def losses(text: str) -> dict[int, set[str]]:
    """Return the losses that were printed for each step; one for each time the step was done."""
    found: dict[int, set[str]] = {}
    for step, loss in re.findall(r"step (\d+)/\d+, loss ([\d.]+)", text):
        found.setdefault(int(step), set()).add(loss)
    return found
