"""Ray nodes of one machine as pods: started with a pod's name, asked to end as Kubernetes asks, or killed.

`ray start` refuses a second node on loopback; this is what ray.cluster_utils does, in a process of its own.
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

from brewclip.local.processes import server_environment

# SIGTERM ends it with all its processes at once, as the end of a container does.
NODE = """
import signal, sys
from ray._private.node import Node
from ray._private.parameter import RayParams
node = Node(RayParams(gcs_address=sys.argv[1], node_name=sys.argv[2], num_cpus=int(sys.argv[3]),
                      node_ip_address="127.0.0.1", object_store_memory=10**8, dashboard_agent_listen_port=0,
                      min_worker_port=0, max_worker_port=0), head=False, shutdown_at_exit=False, spawn_reaper=False)
print("node is up", flush=True)
signal.sigwait([signal.SIGTERM])
node.kill_all_processes(check_alive=False, allow_graceful=True)
"""


def wait_for(condition: Callable[[], object], output: Callable[[], str], seconds: float = 400.0) -> None:
    """Return when the condition holds; fail with the output when that has been silent for too long before."""
    seen, heard = "", time.monotonic()
    while not condition():
        if (now := output()) != seen:
            seen, heard = now, time.monotonic()
        assert time.monotonic() < heard + seconds, f"nothing new in {seconds:.0f} s: {seen[-3000:]}"
        time.sleep(0.1)


class PodOfWorker:
    """A worker node with the name and the environment of a pod.

    Args:
        name: of the pod.
        address: of the GCS.
        num_cpus: that Ray plans with.
        folder: gets its log.
        environment: as the head's.
    """

    def __init__(self, name: str, address: str, num_cpus: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.folder = name, folder
        self.environment = server_environment({**environment, "POD_NAME": name})
        log = folder / f"{name}.log"
        with open(log, "w") as output:
            command = [sys.executable, "-c", NODE, address, name, str(num_cpus)]
            started = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.process = psutil.Process(started.pid)
        wait_for(lambda: "node is up" in log.read_text(), log.read_text)

    def end(self, pre_stop: Sequence[str], checkout: Path, grace_seconds: float, enough: Callable[[], bool]) -> str:
        """End it as Kubernetes does: the hook, then SIGTERM, then SIGKILL when the grace period is over.

        The hook's wait, which follows what it says, is cut short when it is long enough. Returns what the hook said.
        """
        deadline = time.monotonic() + grace_seconds
        words = [word.replace("/app", str(checkout)) for word in pre_stop]
        log = self.folder / f"{self.name}-hook.log"
        hook = own_session(words, self.environment, log, checkout)
        while hook.poll() is None and time.monotonic() < deadline and not (log.read_text() and enough()):
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(hook.pid, signal.SIGKILL)
        hook.wait()
        processes = self.processes()  # while it lives: its children would be nobody's afterwards
        self.process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        kill_all(processes)
        return log.read_text()

    def kill(self) -> None:
        """Kill everything of it at once, as a lost machine does."""
        kill_all(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Return what runs in it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [*self.process.children(recursive=True), self.process]
        return []


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
