"""A Ray head node on loopback with its dashboard, separate from every other Ray on the machine."""

import json
import os
import secrets
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brewclip.local.processes import (
    LOOPBACK,
    SupervisedProcess,
    free_port,
    open_loopback_url,
    program_path,
    server_environment,
)
from brewclip.local.server import Server

# Ray puts its sockets below the temporary directory like this; AF_UNIX allows paths of 107 bytes.
MAX_TEMP_DIRECTORY_BYTES = 107 - len("/r/session_2025-01-31_23-59-59_123456_1234567/sockets/plasma_store")

# Without it, a head listens on every interface, and a client replaces 127.0.0.1 with the machine's address.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
RAY_SETTINGS = LOOPBACK_ONLY | {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with the patch, workers' output is printed twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "30",  # of `ray job stop`: time for a last checkpoint; Ray's own 3 s are short
}


class RayHead(Server):
    """`ray start --head` on free loopback ports, with its own temporary directory.

    It requires a token: without one, every user of the machine could run code as this user. The mode is always
    set, since Ray's default depends on whether ~/.ray/auth_token exists.

    Its logs are copied to `log_directory`/ray when it ends. Workers inherit `environment`: secrets given here appear
    neither on a command line nor on the dashboard's job page, unlike those of a job's runtime environment.

    Args:
        log_directory: gets `ray.log` and `ray/`.
        num_cpus: CPUs that Ray may use; None: all.
        object_store_memory_bytes: shared memory for objects; jobs pass URLs and small tensors.
        environment: overrides of our environment: those of S3Server and MlflowServer.
        token: required of clients and, once, by the dashboard; None: that of RAY_AUTH_TOKEN, else a random one.
    """

    name = "ray"
    start_timeout_seconds = 120.0
    # Ray 2.60 gives up when its client server, which cannot be left out, waits 30 s for the node.
    num_starts = 2

    def __init__(
        self,
        log_directory: Path,
        num_cpus: int | None = None,
        object_store_memory_bytes: int = 512 * 2**20,
        environment: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(log_directory)
        self.num_cpus = num_cpus
        self.object_store_memory_bytes = object_store_memory_bytes
        self.own_environment = dict(environment or {})
        self.token = token or os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
        self.port = free_port()
        self.dashboard_port = free_port()

    @property
    def address(self) -> str:
        """Address for `ray.init(address=...)`."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def dashboard_url(self) -> str:
        """URL of the dashboard, also for `ray job submit --address`."""
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    def environment(self) -> dict[str, str]:
        """Return the variables by which `ray.init()` and `ray job` find this head and no other.

        They must be set before a program imports Ray, which reads the mode and the token once.
        """
        found_by = {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard_url}
        return found_by | LOOPBACK_ONLY | self._authentication()

    def request_headers(self) -> dict[str, str]:
        """Return the headers that a request to the dashboard needs."""
        return {"Authorization": f"Bearer {self.token}"}

    def _authentication(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def launch(self) -> SupervisedProcess:
        private = short_temporary_directory()  # 0700; Ray makes its own directory writable to all users
        temporary = private / "r"
        command = [
            program_path("ray"),
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            "--log-color=false",
        ]
        command += [f"--node-ip-address={LOOPBACK}", f"--port={self.port}", f"--temp-dir={temporary}"]
        command += [f"--dashboard-host={LOOPBACK}", f"--dashboard-port={self.dashboard_port}"]
        command += [f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]  # any free ports
        command += [f"--object-store-memory={self.object_store_memory_bytes}"]
        command += [f"--num-cpus={self.num_cpus}"] if self.num_cpus is not None else []
        # With another Ray on the machine, Ray Train's clean-up after a dead controller would not find this one.
        found_by = {"RAY_ADDRESS": self.address}
        return SupervisedProcess(
            command,
            environment=server_environment(self.own_environment | RAY_SETTINGS | found_by | self._authentication()),
            log_path=self.log_path,
            rescue=(temporary / "session_latest" / "logs", self.log_directory / "ray"),
            remove=[private],
        )

    @property
    def url(self) -> str:
        return self.dashboard_url

    def request(self, path: str, method: str = "GET") -> dict[str, Any]:
        """Return the response of the dashboard's API, or an empty dictionary if there is none."""
        url = self.dashboard_url + path
        request = urllib.request.Request(url, headers=self.request_headers(), method=method)
        try:
            with open_loopback_url(request) as response:
                return dict(json.load(response))
        except (OSError, ValueError):
            return {}

    def is_ready(self) -> bool:
        # The dashboard is up some seconds before the node that runs jobs.
        nodes = self.request("/nodes?view=summary").get("data", {}).get("summary", [])
        return any(node.get("raylet", {}).get("state") == "ALIVE" for node in nodes)


def short_temporary_directory() -> Path:
    """Create a directory whose path leaves room for Ray's socket names: in TMPDIR, else in /tmp."""
    directory = Path(tempfile.mkdtemp(prefix="brewclip-"))
    if len(bytes(directory)) > MAX_TEMP_DIRECTORY_BYTES:
        shutil.rmtree(directory)
        directory = Path(tempfile.mkdtemp(prefix="brewclip-", dir="/tmp"))
    return directory
