"""An MLflow server on loopback: SQLite for runs and metrics, a directory or a bucket for artifacts."""

import sys
from collections.abc import Mapping
from pathlib import Path

from brewclip.local.processes import (
    LOOPBACK,
    SupervisedProcess,
    answers_http,
    free_port,
    server_environment,
)
from brewclip.local.server import Server

# No telemetry.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
# Job runners for evaluating language models: more processes, not used here.
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class MlflowServer(Server):
    """`mlflow server` on SQLite; clients reach artifacts through it, so they need no access to the artifact store.

    Args:
        directory: holds `mlflow.db`; created if missing, not removed at the end.
        log_directory: gets `mlflow.log`.
        artifacts: where artifacts are stored, an s3:// URL or a directory; None: a folder in `directory`.
        environment: overrides of our environment, such as S3Server.environment() for an s3:// URL.
    """

    name = "mlflow"
    start_timeout_seconds = 120.0  # imports alone take 10 s on two busy cores

    def __init__(
        self,
        directory: Path,
        log_directory: Path,
        artifacts: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(log_directory)
        self.directory = Path(directory).absolute()
        self.artifacts = artifacts if artifacts is not None else self.directory / "artifacts"
        self.own_environment = dict(environment or {})
        self.port = free_port()

    @property
    def tracking_uri(self) -> str:
        """The server's address, for clients and browsers; unchanged by a restart."""
        return f"http://{LOOPBACK}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the variables by which MLflow's client finds the server."""
        return {"MLFLOW_TRACKING_URI": self.tracking_uri} | QUIET

    def launch(self) -> SupervisedProcess:
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            f"--host={LOOPBACK}",
            f"--port={self.port}",
            "--workers=1",
        ]
        command += [f"--backend-store-uri=sqlite:///{self.directory / 'mlflow.db'}"]
        command += [f"--artifacts-destination={self.artifacts}"]
        environment = server_environment(self.own_environment | QUIET | NO_JOBS)
        return SupervisedProcess(command, environment=environment, log_path=self.log_path, grace_seconds=5.0)

    @property
    def url(self) -> str:
        return self.tracking_uri

    def is_ready(self) -> bool:
        return answers_http(f"{self.tracking_uri}/health")
