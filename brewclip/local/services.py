"""The three local services together, over one state directory that later runs reuse."""

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from brewclip.local.mlflow_login import MlflowLogin
from brewclip.local.mlflow_server import MlflowServer
from brewclip.local.ray_head import RayHead
from brewclip.local.s3_key import S3Key
from brewclip.local.s3_server import S3Server
from brewclip.local.server import Server

BUCKET = "brewclip"


class StateError(RuntimeError):
    """A state directory that another program uses, that cannot be written, or whose secrets are damaged."""


class LocalServices:
    """S3, Ray and MLflow on free loopback ports, started in parallel.

    The objects (`s3/`), the runs (`mlflow/mlflow.db`), the key pair (`s3-key.json`) and MLflow's password
    (`mlflow-password`) remain in the state directory and are reused by later runs; the ports are new each time.
    MLflow's artifacts are in the bucket, below `mlflow/`.

    Args:
        state_directory: created if missing, for its owner only.
        num_cpus: CPUs that Ray may use; None: all.
        environment: additional variables for Ray and its workers.
        say: called with a line when a server starts or stops.

    Raises:
        StateError: if another process uses the state directory, it cannot be written, or its key pair or password is
            damaged.
    """

    def __init__(
        self,
        state_directory: Path,
        num_cpus: int | None = None,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.state_directory = Path(state_directory).absolute()
        self.say = say
        try:
            self.state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.state_directory.chmod(0o700)  # also where it exists: it holds keys, data and code
            self._lock: int | None = self._take_lock()
        except OSError as error:
            raise StateError(f"{self.state_directory} cannot be written: {error.strerror}") from error
        logs = self.state_directory / "logs"
        try:
            key = S3Key.of_file(self.state_directory / "s3-key.json")
            login = MlflowLogin.of_file(self.mlflow_password_file)
        except ValueError as error:
            self._release_lock()
            raise StateError(str(error)) from error
        self.s3 = S3Server(self.state_directory / "s3", logs, key)
        artifacts = f"{self.bucket_url}/mlflow"
        self.mlflow = MlflowServer(self.state_directory / "mlflow", logs, artifacts, self.s3.environment(), login)
        self.ray = RayHead(logs, num_cpus=num_cpus, environment=self._storage_and_tracking() | dict(environment or {}))
        self._servers: tuple[Server, ...] = (self.s3, self.ray, self.mlflow)  # the fastest to start comes first

    @property
    def bucket_url(self) -> str:
        """URL of the bucket, which is created at the start."""
        return f"s3://{BUCKET}"

    @property
    def mlflow_password_file(self) -> Path:
        """The file with MLflow's password, readable by its owner only."""
        return self.state_directory / "mlflow-password"

    def environment(self) -> dict[str, str]:
        """Return the variables by which a program on this machine finds all three, and the bucket."""
        return self._storage_and_tracking() | self.ray.environment()

    def _storage_and_tracking(self) -> dict[str, str]:
        return self.s3.environment() | self.mlflow.environment() | {"BREWCLIP_STORAGE": self.bucket_url}

    def start(self) -> None:
        """Start all three in parallel and wait until they answer; if one fails, stop the others."""
        start = time.monotonic()
        try:
            for server in self._servers:
                server.begin_start()
            for server in self._servers:
                server.finish_start()
                self.say(f"services: {server.name} answers on {server.url} after {time.monotonic() - start:.1f} s")
            self.s3.create_bucket(BUCKET)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all three in parallel and release the state directory."""
        start = time.monotonic()
        for server in self._servers:
            server.begin_stop()
        for server in self._servers:
            server.stop()
        if self._lock is not None:
            self._release_lock()
            self.say(f"services: ended after {time.monotonic() - start:.1f} s")

    def _take_lock(self) -> int:
        descriptor = os.open(self.state_directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StateError(
                f"{self.state_directory} is in use by another run: wait for its end or name another directory"
            ) from error
        return descriptor

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
