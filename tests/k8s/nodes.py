"""Ray nodes of one machine as pods: asked to end as Kubernetes asks, with Ray's own answer, or killed.

`ray start` refuses a second node on loopback; what it does with `--block` is done here in a process of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from brewclip.local.processes import LOOPBACK, free_port, program_path, server_environment
from brewclip.local.ray_head import RAY_SETTINGS

# Of tests that start several nodes at once; without it they are reported as skipped. Ray ends a node whose agent is not
# up within 15 s, which no setting changes, and a machine that runs other tests beside them may take longer.
ON_REQUEST = pytest.mark.skipif(
    os.environ.get("BREWCLIP_KUBERNETES_DRILLS") != "1",
    reason="needs a quiet machine for minutes: BREWCLIP_KUBERNETES_DRILLS=1 runs it",
)

# `shutdown_at_exit` is what `--block` passes on: Ray's own handler of SIGTERM, which drains the node.
NODE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams
node = Node(RayParams(gcs_address=sys.argv[1], num_cpus=int(sys.argv[2]), node_ip_address="127.0.0.1",
                      object_store_memory=10**8, dashboard_agent_listen_port=0, min_worker_port=0, max_worker_port=0),
            head=False, shutdown_at_exit=True, spawn_reaper=False)
print("will now block", flush=True)
while True:
    time.sleep(1)
"""


def wait_for(condition: Callable[[], object], output: Callable[[], str], seconds: float = 400.0) -> None:
    """Return when the condition holds; fail with the output when that has been silent for too long before."""
    seen, heard = "", time.monotonic()
    while not condition():
        if (now := output()) != seen:
            seen, heard = now, time.monotonic()
        assert time.monotonic() < heard + seconds, f"nothing new in {seconds:.0f} s: {seen[-3000:]}"
        time.sleep(0.1)


class Pod:
    """A container with one program: `ray start --block`, or what runs beside it.

    Args:
        command: its first process.
        environment: its variables, beside those of every server.
        log: gets its output.
        ready: text of the output that says it is up.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, ready: str) -> None:
        started = own_session(command, server_environment(environment), log, Path.cwd())
        self.process = psutil.Process(started.pid)
        self._started = started
        wait_for(lambda: ready in log.read_text() or started.poll() is not None, log.read_text)
        assert started.poll() is None, log.read_text()[-3000:]

    def ask_to_end(self) -> list[psutil.Process]:
        """Send SIGTERM to its first process alone, as Kubernetes does; return what runs in it."""
        processes = self.processes()  # while it lives: its children would be nobody's afterwards
        self.process.terminate()
        return processes

    def end(self, processes: Sequence[psutil.Process], grace_seconds: float) -> float:
        """Wait until the first process has ended, kill what is left, and return the seconds that it took."""
        started = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._started.wait(grace_seconds)
        kill_all(processes)
        return time.monotonic() - started

    def kill(self) -> None:
        """Kill everything of it at once, as a lost machine does."""
        kill_all(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Return what runs in it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [*self.process.children(recursive=True), self.process]
        return []


def start_head(folder: Path, temporary: Path, environment: Mapping[str, str]) -> tuple[Pod, str]:
    """Start a head that runs no task and has no dashboard; return it with the address of its GCS."""
    address = f"{LOOPBACK}:{free_port()}"
    command = [program_path("ray"), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false"]
    command += [f"--node-ip-address={LOOPBACK}", f"--port={address.rpartition(':')[2]}", "--num-cpus=0"]
    command += [f"--temp-dir={temporary}", f"--ray-client-server-port={free_port()}"]
    command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
    command += ["--object-store-memory=100000000"]
    return Pod(command, {**environment, **RAY_SETTINGS}, folder / "head.log", "will now block"), address


def start_worker(folder: Path, name: str, address: str, num_cpus: int, environment: Mapping[str, str]) -> Pod:
    """Start the node of a worker's pod."""
    command = [sys.executable, "-c", NODE, address, str(num_cpus)]
    return Pod(command, {**environment, **RAY_SETTINGS}, folder / f"{name}.log", "will now block")


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def environment_of(container: Mapping, settings: Mapping[str, str]) -> dict[str, str]:
    """Return a container's variables as Kubernetes would set them, those from Secrets and the pod itself excepted."""
    values = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {}).get("configMapKeyRef", {})
        if "value" in variable:
            values[variable["name"]] = variable["value"]
        elif source.get("key") in settings:
            values[variable["name"]] = settings[source["key"]]
    values.pop("HOME", None)  # a volume of the pod
    return values


def own_session(command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> subprocess.Popen:
    """Start a command that can be killed with everything below it."""
    with open(log, "a") as output:
        return subprocess.Popen(
            list(command),
            env={**os.environ, **environment},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_session(process: subprocess.Popen) -> None:
    """Kill a program started by `own_session` with everything below it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
