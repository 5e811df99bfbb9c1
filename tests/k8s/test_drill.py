"""What Kubernetes does to pods, done to a real Ray of several nodes: the run finishes as if nothing had happened.

A worker's pod is asked to end and Ray drains its node; another machine dies meanwhile; the job is suspended, so that
all pods are asked to end at once; and the head dies with all that ran on it. After each, what KubeRay would make is
made: new pods, or a new cluster and the same command.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from brewclip.checkpoints.checkpoint import load_checkpoint
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing
from brewclip.local.ray_head import short_temporary_directory
from tests.k8s.manifests.check import render_stage
from tests.k8s.manifests.pods import pods_of
from tests.k8s.nodes import ON_REQUEST, Pod, kill_session, own_session, start_head, start_worker, wait_for
from tests.k8s.overlays import CHECKOUT, filled_in
from tests.training.features import write_features

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800), ON_REQUEST]

STEPS, EVERY_STEPS, LOG_EVERY_STEPS = 240, 20, 3
DRAIN, DRAIN_SECONDS = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 6
TRAINING = {
    "MLFLOW_TRACKING_URI": "",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_raylet_start_wait_time_s": "300",  # two busy cores start nine nodes
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_agent_register_timeout_ms": "300000",
}
NOTICE = "a machine will go, writing a checkpoint"


class Cluster:
    """A Ray cluster as KubeRay makes it: a head that runs drivers and no task, two workers with one place each.

    Args:
        folder: gets the logs.
        environment: of all pods.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self.folder, self.environment = folder, environment
        self.temporary = short_temporary_directory()
        self.head, self.address = start_head(folder, self.temporary / "r", environment)
        self.workers: list[Pod] = []
        self.driver: subprocess.Popen | None = None
        for _ in range(2):
            self.add_worker()

    def add_worker(self) -> None:
        """Start the pod of a worker."""
        name = f"worker-{len(list(self.folder.glob('worker-*')))}"
        self.workers.append(start_worker(self.folder, name, self.address, 2, self.environment))

    def submit(self, entrypoint: str, log: Path) -> None:
        """Start the job's command on the head; Ray's job server does the same (test_entrypoints goes through it)."""
        words = shlex.split(entrypoint)
        assert words[0] == "python"
        self.driver = own_session(
            [sys.executable, *words[1:]], self.environment | {"RAY_ADDRESS": self.address}, log, CHECKOUT
        )

    def suspend(self, grace_seconds: float) -> None:
        """Ask all pods to end at once, as the deletion of the RayCluster does."""
        asked = [(pod, pod.ask_to_end()) for pod in (self.head, *self.workers)]
        for pod, processes in asked:
            pod.end(processes, grace_seconds)
        self.lose()

    def lose(self) -> None:
        """Kill the head, the driver on it, and the workers."""
        for pod in (self.head, *self.workers):
            pod.kill()
        if self.driver is not None:
            kill_session(self.driver)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def manifest(tmp_path):
    """The worker's pod and the training job of the overlay `kind`."""
    (job,) = (one for one in render_stage(filled_in(tmp_path) / "kind" / "train") if one["kind"] == "RayJob")
    (worker,) = (pod for pod in pods_of([job]) if pod.ray == "worker")
    return job["spec"], worker.spec


@contextlib.contextmanager
def started(folder: Path, environment: dict[str, str]) -> Iterator[Cluster]:
    """A cluster that is gone afterwards, whatever happens."""
    cluster = Cluster(folder, environment)
    try:
        yield cluster
    finally:
        cluster.lose()


def test_a_run_survives_what_kubernetes_does_to_it(manifest, s3, tmp_path, monkeypatch):
    job, pod = manifest
    storage = s3.create_bucket("drill")
    for split, count in (("train", 30), ("dev", 4)):
        write_features(f"{storage}/scenes/whisper-base", split, count)
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert 15 <= float(variables[DRAIN]) < pod["terminationGracePeriodSeconds"], (
        "here shorter: training goes on meanwhile"
    )
    environment = s3.environment() | {"BREWCLIP_STORAGE": storage, DRAIN: str(DRAIN_SECONDS)} | TRAINING
    environment |= {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    monkeypatch.chdir(CHECKOUT)  # the image's working directory
    entrypoint = job["entrypoint"].replace("--cluster.num-workers 1", "--cluster.num-workers 2")
    entrypoint = entrypoint.replace("--cluster.min-workers 1", "--cluster.min-workers 0")
    entrypoint += f" --optim.total-steps {STEPS} --optim.warmup-steps 5 --run.global-batch-size 6"
    entrypoint += f" --run.log-every-steps {LOG_EVERY_STEPS} --run.eval-every-steps {STEPS}"
    entrypoint += f" --run.checkpoint-every-steps {EVERY_STEPS} --cluster.cpus-per-worker 2"
    log, run = tmp_path / "job.log", open_storage(f"{storage}/runs/scenes-brewclip-0")

    def text() -> str:
        return log.read_text()

    def step() -> int:
        try:
            return int(run.read("checkpoints/latest").decode().removeprefix("step-"))
        except ObjectMissing:
            return 0

    with started(tmp_path / "first", environment) as cluster:
        cluster.submit(entrypoint, log)
        wait_for(lambda: step() >= EVERY_STEPS, text)

        # 1. A worker's pod is asked to end: Ray drains its node, training writes a checkpoint. Meanwhile another
        # machine is lost without a word. Both get new pods.
        leaving, lost = cluster.workers
        before_notice = step()
        processes = leaving.ask_to_end()
        wait_for(lambda: NOTICE in text() and step() > before_notice, text)
        after_notice = step()
        lost.kill()
        grace_seconds = pod["terminationGracePeriodSeconds"]
        assert leaving.end(processes, grace_seconds) < grace_seconds, "Ray ends by itself, nobody kills it"
        cluster.workers.clear()
        cluster.add_worker()
        cluster.add_worker()
        wait_for(lambda: step() >= after_notice + EVERY_STEPS, text)

        # 2. The job is suspended: all pods are asked to end, and training writes a last checkpoint.
        before_suspend, notices = step(), text().count(NOTICE)
        cluster.suspend(grace_seconds)
    suspended_at = step()
    assert text().count(NOTICE) > notices
    assert before_suspend < suspended_at < STEPS

    # 3. It goes on, and the head is lost, with all that ran there.
    with started(tmp_path / "second", environment) as cluster:
        cluster.submit(entrypoint, log)
        wait_for(lambda: step() > suspended_at, text)
        cluster.lose()
    lost_at = step()
    assert lost_at < STEPS

    # 4. A new cluster, the same command; and the run that nothing happened to.
    with started(tmp_path / "third", environment) as cluster:
        cluster.submit(entrypoint, log)
        wait_for(lambda: f"done: step {STEPS}" in text() or cluster.driver.poll(), text)
        cluster.submit(entrypoint.replace("scenes-brewclip-0", "undisturbed"), tmp_path / "calm")
        wait_for(lambda: cluster.driver.poll() is not None, (tmp_path / "calm").read_text)
    disturbed, calm = load_checkpoint(run), load_checkpoint(open_storage(f"{storage}/runs/undisturbed"))
    assert disturbed.facts.step == calm.facts.step == STEPS, (tmp_path / "calm").read_text()[-3000:]
    for place in (suspended_at, lost_at):
        assert f"step {place} of {STEPS}, 2 workers" in text(), "the new cluster went on from the last checkpoint"
    for name, tensor in calm.model.items():
        assert torch.equal(disturbed.model[name], tensor), name
    undisturbed, repeated = losses((tmp_path / "calm").read_text()), losses(text())
    assert undisturbed.keys() >= repeated.keys() > set()
    for number, found in repeated.items():
        assert found == undisturbed[number], f"step {number}"


def losses(text: str) -> dict[int, set[str]]:
    """Return the losses that were printed for each step; one for each time the step was done."""
    found: dict[int, set[str]] = {}
    for step, loss in re.findall(r"step (\d+)/\d+, loss ([\d.]+)", text):
        found.setdefault(int(step), set()).add(loss)
    return found
