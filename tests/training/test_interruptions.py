"""Training is killed, starved and moved, and ends as if nothing had happened.

Real jobs on a real Ray head, features on a real S3 server. The run that nothing happened to is made once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from brewclip.local import MlflowServer, RayHead
from brewclip.local.processes import program_path
from tests.training.features import write_features
from tests.training.runs import STEPS, TrainingJob, training_workers

pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def storage(s3):
    """A bucket with features to train on."""
    url = s3.create_bucket("interruptions")
    write_features(f"{url}/scenes/whisper-base", "train", 30)
    write_features(f"{url}/scenes/whisper-base", "dev", 8)
    return url


UNRECORDED = ("--tracking.uri", "")


@pytest.fixture(scope="module")
def records(mlflow_server):
    """Flags that record runs in MLflow, where losses have all their digits."""
    return "--tracking.uri", mlflow_server.tracking_uri


@pytest.fixture(scope="module")
def undisturbed(storage, records, ray_head, tmp_path_factory):
    """A run on two workers that nothing happens to."""
    job = TrainingJob(storage, "undisturbed", tmp_path_factory.mktemp("runs") / "undisturbed.log", *records)
    assert job.wait() == 0, job.log.read_text()
    return job


def assert_same_run(job: TrainingJob, undisturbed: TrainingJob) -> None:
    """Every step had the loss it would have had, and the weights are the same to the bit."""
    one, other = job.checkpoint(), undisturbed.checkpoint()
    assert one.facts.step == other.facts.step == STEPS
    for name, tensor in other.model.items():
        assert torch.equal(one.model[name], tensor), name
    for step, losses in job.losses().items():
        assert losses == undisturbed.losses()[step], f"step {step}"


def test_a_run_that_is_killed_asked_to_end_and_starved(
    storage, undisturbed, records, s3, mlflow_server, ray_head, tmp_path
):
    """A worker is killed, then the driver; the next driver is asked to end; the last loses storage and MLflow.

    SIGTERM to the driver, as `ray job stop` and Kubernetes send it, writes a checkpoint first. While storage and MLflow
    are away, training goes on with what it has and waits for data. It is one MLflow run, and no record is lost but
    what killed workers had still to deliver.
    """
    log = tmp_path / "log"
    job = TrainingJob(storage, "disturbed", log, *records)
    job.wait_for_step(5)
    training_workers()[1].kill()
    job.wait_for_step(14)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.wait()
    _wait_until_no_workers()
    killed_at = job.step()

    job = TrainingJob(storage, "disturbed", log, *records, "--run.checkpoint-every-steps", "1000")
    _wait_for_text(log, "step 30/")
    job.process.terminate()
    assert job.wait() == 2
    asked_at = job.step()
    assert 30 <= asked_at < STEPS
    assert f"was asked to stop at step {asked_at};" in log.read_text()

    job = TrainingJob(storage, "disturbed", log, *records)
    job.wait_for_step(asked_at + 1)
    s3.stop()
    mlflow_server.stop()
    time.sleep(12)  # longer than what is fetched ahead lasts
    s3.start()
    mlflow_server.start()
    assert job.wait() == 0, log.read_text()[-3000:]
    assert_same_run(job, undisturbed)
    assert_whole_record(job, mlflow_server, killed_at, asked_at)


def assert_whole_record(job: TrainingJob, mlflow_server: MlflowServer, killed_at: int, asked_at: int) -> None:
    """MLflow holds one run of the job, finished, with all steps of the drivers that lived; the last one's once."""
    import mlflow

    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (run,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{job.run_url}'")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert set(steps) >= set(range(killed_at + 1, STEPS + 1))
    assert sorted(step for step in steps if step > asked_at) == list(range(asked_at + 1, STEPS + 1))
    assert run.info.status == "FINISHED"


# The head has four CPUs: one worker of three fits there, the other on the node that comes and goes.
TWO_NODES = ("--cluster.cpus-per-worker", "3")
ELASTIC = (*TWO_NODES, "--cluster.min-workers", "1", "--cluster.resize-every-seconds", "3")


def test_a_lost_node_and_another_number_of_workers(storage, undisturbed, records, ray_head, tmp_path):
    """A worker's node disappears; the run is finished on one worker instead of two, and its curve is the same."""
    node = _start_node(ray_head, tmp_path)
    job = TrainingJob(storage, "moved", tmp_path / "moved.log", *records, *TWO_NODES)
    try:
        job.wait_for_step(9)
        assert len(training_workers()) == 2
    finally:
        _kill_node(node)
    time.sleep(3)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.wait()
    _wait_until_no_workers()
    assert 0 < job.step() < STEPS
    job = TrainingJob(storage, "moved", tmp_path / "moved.log", *records, *TWO_NODES, "--cluster.num-workers", "1")
    assert job.wait() == 0, job.log.read_text()[-3000:]
    losses = job.recorded_losses(records[1])
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses == pytest.approx(undisturbed.recorded_losses(records[1]), abs=1e-4)
    one, other = job.checkpoint(), undisturbed.checkpoint()
    assert one.facts.step == STEPS
    for name, tensor in other.model.items():
        torch.testing.assert_close(one.model[name], tensor, atol=1e-3, rtol=1e-3)


def test_a_machine_that_is_about_to_go(storage, ray_head, tmp_path, monkeypatch):
    """A preemption notice becomes a checkpoint; the run goes on from there alone, and with two when a machine comes."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    node = _start_node(ray_head, tmp_path)
    rhythm = ("--optim.total-steps", "9000", "--run.checkpoint-every-steps", "1000", "--run.eval-every-steps", "9000")
    rhythm += ("--run.log-every-steps", "10")
    job = TrainingJob(storage, "preempted", tmp_path / "log", *ELASTIC, *rhythm, *UNRECORDED)
    alone, together = "of 9000, 1 workers", "of 9000, 2 workers"
    try:
        _wait_for_text(job.log, together)  # it may have started alone, and have been resized
        _drain_node(ray_head, node, seconds=20)
        _wait_for_text(job.log, "a machine will go, writing a checkpoint")
        job.wait_for_step(1)
        starts_alone = job.log.read_text().count(alone)
        _kill_node(node)
        _wait_for_text(job.log, alone, times=starts_alone + 1)
        alone_from, starts_together = job.step(), job.log.read_text().count(together)
        node = _start_node(ray_head, tmp_path)
        _wait_for_text(job.log, together, times=starts_together + 1)
        job.process.terminate()
        assert job.wait() == 2
    finally:
        _kill_node(node)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
    assert job.step() >= alone_from >= 1


# `ray start` refuses a second node on loopback; this is what ray.cluster_utils does, in a process that can be killed.
NODE = """
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
node = Node(RayParams(gcs_address=sys.argv[1], node_ip_address="127.0.0.1", num_cpus=3, object_store_memory=10**8,
                      dashboard_agent_listen_port=0, min_worker_port=0, max_worker_port=0),
            head=False, shutdown_at_exit=False, spawn_reaper=False)
print("node is up", flush=True)
signal.pause()
"""


def _start_node(ray_head: RayHead, folder: Path) -> psutil.Process:
    """Start a second Ray node on this machine and return its process when it is up."""
    with open(folder / "node.log", "w") as output:
        command = [sys.executable, "-c", NODE, ray_head.address]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    _wait_for_text(folder / "node.log", "node is up")
    return psutil.Process(process.pid)


def _drain_node(ray_head: RayHead, node: psutil.Process, seconds: int) -> None:
    """Tell Ray, as a cloud's notice does, that a node will go."""
    (raylet,) = [process for process in node.children() if process.name() == "raylet"]
    (node_id,) = [word.removeprefix("--node_id=") for word in raylet.cmdline() if word.startswith("--node_id=")]
    command = [program_path("ray"), "drain-node", f"--address={ray_head.address}", f"--node-id={node_id}"]
    command += [
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=spot",
        f"--deadline-remaining-seconds={seconds}",
    ]
    subprocess.run(command, timeout=60, check=True)


def _kill_node(node: psutil.Process) -> None:
    """Kill everything of a node at once, as a lost machine does."""
    processes = [node, *node.children(recursive=True)] if node.is_running() else []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def _wait_until_no_workers(seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while training_workers():
        assert time.monotonic() < deadline, [psutil.Process(p.pid).cmdline() for p in training_workers()]
        time.sleep(0.2)


def _wait_for_text(log: Path, text: str, times: int = 1, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while log.read_text().count(text) < times:
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def test_a_driver_that_was_stopped_longer_than_its_lease_ends_when_it_wakes(storage, ray_head, tmp_path):
    """SIGSTOP for longer than the lease: another driver takes the run over; the first ends, and changes nothing."""
    log, steps = tmp_path / "stopped.log", ("--optim.total-steps", "5000", "--cluster.num-workers", "1", *UNRECORDED)
    first = TrainingJob(storage, "stopped", log, *steps)
    first.wait_for_step(4)
    first.process.send_signal(signal.SIGSTOP)
    second = TrainingJob(storage, "stopped", tmp_path / "second.log", *steps)
    try:
        _wait_for_text(tmp_path / "second.log", "first batch")
        first.process.send_signal(signal.SIGCONT)
        assert first.wait(90) == 2, log.read_text()[-2000:]
        assert "was taken over by another program" in log.read_text()
        assert second.process.poll() is None
        at = second.step()
        second.wait_for_step(at + 4)
    finally:
        for job in (first, second):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL)
            job.wait()
        _wait_until_no_workers()
