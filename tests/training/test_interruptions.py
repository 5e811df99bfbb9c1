"""Training is killed, starved and moved, and ends as if nothing had happened.

Real jobs on a real Ray head, features on a real S3 server. The run that nothing happened to is made once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from brewclip.checkpoints.checkpoint import open_checkpoint
from brewclip.local import RayHead
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
    """A run on two workers that nothing happens to; it keeps all its checkpoints."""
    log = tmp_path_factory.mktemp("runs") / "undisturbed.log"
    job = TrainingJob(storage, "undisturbed", log, *records, "--run.keep-checkpoints", "99")
    assert job.wait() == 0, job.log.read_text()
    return job


@pytest.fixture
def one_cpu(undisturbed, ray_head) -> Iterator[None]:
    """Leave one of the head's four CPUs, so that of two workers with one each, the second is on another node."""
    import ray
    from ray.util import placement_group, remove_placement_group

    ray.init(ignore_reinit_error=True, logging_level="error")
    held = placement_group([{"CPU": 3}])
    assert held.wait(30)
    yield
    remove_placement_group(held)


def test_a_run_that_loses_a_worker_a_node_its_drivers_and_its_services(
    storage, undisturbed, one_cpu, records, s3, mlflow_server, ray_head, tmp_path
):
    """Two workers on two nodes: one is killed; the driver is asked to end; the next one's node disappears, and it, too.

    The last driver has one worker, and loses storage and MLflow for a while. Up to there, weights and losses are those
    of the undisturbed run to the bit, and from there on but for rounding. It is one MLflow run.
    """
    log = tmp_path / "log"
    node = _start_node(ray_head, tmp_path, num_cpus=1)
    try:
        job = TrainingJob(storage, "disturbed", log, *records)
        job.wait_for_step(5)
        training_workers()[1].kill()
        _wait_for_text(log, "step 30/")
        job.process.terminate()
        assert job.wait() == 2
        asked_at = job.step()
        assert 30 <= asked_at < STEPS
        assert f"was asked to stop at step {asked_at};" in log.read_text()

        job = TrainingJob(storage, "disturbed", log, *records)
        job.wait_for_step(asked_at + 5)
        assert len(training_workers()) == 2
    finally:
        _kill_node(node)
    time.sleep(3)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.wait()
    _wait_until_no_workers()
    killed_at = job.step()
    assert asked_at + 5 <= killed_at < STEPS
    then = open_checkpoint(f"{undisturbed.run_url}/checkpoints/step-{killed_at:08d}")
    for name, tensor in then.model.items():
        assert torch.equal(job.checkpoint().model[name], tensor), name

    started = time.time()
    job = TrainingJob(storage, "disturbed", log, *records, "--cluster.num-workers", "1")
    job.wait_for_step(killed_at + 1)
    s3.stop()
    mlflow_server.stop()
    time.sleep(12)  # longer than what is fetched ahead lasts
    s3.start()
    mlflow_server.start()
    assert job.wait() == 0, log.read_text()[-3000:]
    one, other = job.checkpoint(), undisturbed.checkpoint()
    assert one.facts.step == other.facts.step == STEPS
    for name, tensor in other.model.items():
        torch.testing.assert_close(one.model[name], tensor, atol=1e-3, rtol=1e-3)
    assert_whole_record(job, undisturbed, mlflow_server.tracking_uri, asked_at, killed_at, started)


def assert_whole_record(
    job: TrainingJob, undisturbed: TrainingJob, tracking_uri: str, asked_at: int, killed_at: int, started: float
) -> None:
    """MLflow holds one run of the job, finished; drivers that lived left all their steps, and the last one's once."""
    run, points = job.recorded(tracking_uri)
    assert run.info.status == "FINISHED"
    expected = {point.step: point.value for point in undisturbed.recorded(tracking_uri)[1]}
    assert sorted(expected) == list(range(1, STEPS + 1))
    before = [point for point in points if point.timestamp < 1000 * started]
    last = [point for point in points if point.timestamp >= 1000 * started]
    assert {point.step for point in before} >= set(range(30, asked_at + 1))
    assert sorted(point.step for point in last) == list(range(killed_at + 1, STEPS + 1))
    assert {point.step for point in points} >= set(range(30, STEPS + 1))
    for point in before:
        assert point.value == expected[point.step], f"step {point.step}"
    for point in last:
        assert point.value == pytest.approx(expected[point.step], abs=1e-4), f"step {point.step}"


# The head has four CPUs: one worker of three fits there, the other on the node that comes and goes.
ELASTIC = ("--cluster.cpus-per-worker", "3", "--cluster.min-workers", "1", "--cluster.resize-every-seconds", "3")


def test_a_machine_that_is_about_to_go(storage, ray_head, tmp_path, monkeypatch):
    """A preemption notice becomes a checkpoint; the run goes on from there alone, and with two when a machine comes."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")  # for room for two, after the node has gone
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
address, num_cpus = sys.argv[1:]
node = Node(RayParams(gcs_address=address, node_ip_address="127.0.0.1", num_cpus=int(num_cpus),
                      object_store_memory=10**8, dashboard_agent_listen_port=0, min_worker_port=0, max_worker_port=0),
            head=False, shutdown_at_exit=False, spawn_reaper=False)
print("node is up", flush=True)
signal.pause()
"""


def _start_node(ray_head: RayHead, folder: Path, num_cpus: int = 3) -> psutil.Process:
    """Start a second Ray node on this machine and return its process when it is up."""
    with open(folder / "node.log", "w") as output:
        command = [sys.executable, "-c", NODE, ray_head.address, str(num_cpus)]
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
