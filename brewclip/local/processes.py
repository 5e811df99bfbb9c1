"""Supervised processes that end with this one, their environment, free ports, and waiting for a server."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPResponse
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
SUPERVISOR = Path(__file__).with_name("supervisor.py")
POLL_SECONDS = 0.1
# Each family of settings comes entirely from us or entirely from the user: a mix (our key, the user's session
# token) would be refused by the server.
SETTING_FAMILIES = ("AWS_", "MLFLOW_", "RCLONE_")

_given_ports: set[int] = set()
_port_lock = threading.Lock()


def free_port() -> int:
    """Return a loopback TCP port that is free now and that this function has not returned before."""
    with _port_lock:
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.bind((LOOPBACK, 0))
                port = probe.getsockname()[1]
            if port not in _given_ports:
                _given_ports.add(port)
                return port


def wait_until_ready(is_ready: Callable[[], bool], *, what: str, timeout_seconds: float) -> None:
    """Poll until `is_ready` returns True.

    Raises:
        TimeoutError: if it did not within `timeout_seconds`; the message names `what`.
    """
    deadline = time.monotonic() + timeout_seconds
    while not is_ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not answer within {timeout_seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def answers_http(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Return whether a GET of `url` gives status 200."""
    with (
        contextlib.suppress(OSError),
        open_loopback_url(urllib.request.Request(url, headers=dict(headers or {}))),
    ):
        return True
    return False


def open_loopback_url(request: urllib.request.Request, timeout_seconds: float = 5.0) -> HTTPResponse:
    """Send a request to one of our servers, without a proxy; raise OSError for every status but 2xx."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_seconds)


def accepts_connections(port: int) -> bool:
    """Return whether something listens on the loopback port."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1.0):
        return True
    return False


def program_path(name: str) -> str:
    """Return the path of a program installed with the running Python.

    Raises:
        FileNotFoundError: if it is missing; the message says what to install.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: install the local services, pip install 'brewclip[demo]'")
    return str(path)


def server_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return our environment overridden by `own`, for a server process.

    The running Python's bin directory comes first on PATH (Ray starts `python` by name), loopback uses no
    proxy, and a family of settings that `own` sets replaces the inherited one as a whole.
    """
    replaced = tuple(family for family in SETTING_FAMILIES if any(name.startswith(family) for name in own))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(replaced)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    environment["PYTHONUNBUFFERED"] = "1"
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), LOOPBACK, "localhost"]))
    return environment | dict(own)


class SupervisedProcess:
    """A command that ends with all its descendants on `stop`, or when this process ends in any way.

    Args:
        arguments: the command; secrets belong in `environment`, which other users cannot read.
        environment: the command's whole environment.
        log_path: file that gets its output, appended; None: `lines` yields it.
        grace_seconds: time between asking it to end and killing it.
        rescue: (source, target) of a directory copied when it has ended, or None.
        remove: directories deleted when it has ended.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path | None,
        grace_seconds: float = 10.0,
        rescue: tuple[Path, Path] | None = None,
        remove: Sequence[Path] = (),
    ) -> None:
        self.log_path = log_path
        self.grace_seconds = grace_seconds
        options = [f"--parent={os.getpid()}", f"--grace-seconds={grace_seconds}"]
        options += [f"--remove={directory}" for directory in remove]
        options += ["--rescue", *map(str, rescue)] if rescue else []
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(log_path.open("ab")) if log_path else subprocess.PIPE
            self.supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SUPERVISOR), *options, "--", *arguments],
                env=dict(environment),
                stdin=subprocess.PIPE,  # closing it asks the supervisor to end, see supervisor.py
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is handled here
            )

    @property
    def exit_code(self) -> int | None:
        """None while the command runs; 128 + n when signal n ended it."""
        return self.supervisor.poll()

    def lines(self) -> Iterator[str]:
        """Yield the output line by line until the command ends (only without a log file)."""
        for line in self.supervisor.stdout or ():
            yield line.decode(errors="replace").rstrip("\r\n")

    def ask_to_stop(self) -> None:
        """Ask the command and all its descendants to end, without waiting."""
        if self.supervisor.stdin:
            self.supervisor.stdin.close()
        if self.exit_code is None:  # the pipe stays open if this process was forked meanwhile
            self.supervisor.terminate()

    def stop(self) -> int:
        """End the command and all its descendants; return the exit code when they are gone."""
        self.ask_to_stop()
        try:
            return self.supervisor.wait(self.grace_seconds + 10.0)
        except subprocess.TimeoutExpired:  # the supervisor itself hangs or is stopped
            for process in self.descendants():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return self.supervisor.wait()

    def descendants(self) -> list[psutil.Process]:
        """Return the supervisor and all living processes below it."""
        try:
            top = psutil.Process(self.supervisor.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def last_lines(self, count: int = 5) -> str:
        """Return the end of the log, for an error message."""
        if self.log_path is None:
            return ""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-count:])
