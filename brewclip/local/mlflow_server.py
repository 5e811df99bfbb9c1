"""An MLflow server on loopback: SQLite for runs and metrics, a directory or a bucket for artifacts."""

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from brewclip.local.mlflow_login import MlflowLogin
from brewclip.local.private_files import write_private
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
# Checking a password takes 0.2 s of a core, and the only user's never changes while the server runs.
CHECKED_PASSWORD_SECONDS = 3600


class MlflowServer(Server):
    """`mlflow server` on SQLite; clients reach artifacts through it, so they need no access to the artifact store.

    It requires a password (HTTP basic authentication): without one, every user of the machine could read and change
    runs, and artifacts through the server's key. Open are only `/health` and MLflow's `server-info`.

    Args:
        directory: holds `mlflow.db`; created if missing, not removed at the end.
        log_directory: gets `mlflow.log`.
        artifacts: where artifacts are stored, an s3:// URL or a directory; None: a folder in `directory`.
        environment: overrides of our environment, such as S3Server.environment() for an s3:// URL.
        login: the only user; None makes a random password.
    """

    name = "mlflow"
    start_timeout_seconds = 120.0  # imports alone take 10 s on two busy cores

    def __init__(
        self,
        directory: Path,
        log_directory: Path,
        artifacts: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        login: MlflowLogin | None = None,
    ) -> None:
        super().__init__(log_directory)
        self.directory = Path(directory).absolute()
        self.artifacts = artifacts if artifacts is not None else self.directory / "artifacts"
        self.own_environment = dict(environment or {})
        self.login = login or MlflowLogin.random()
        self.port = free_port()

    @property
    def tracking_uri(self) -> str:
        """The server's address, for clients and browsers; unchanged by a restart."""
        return f"http://{LOOPBACK}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the variables by which MLflow's client finds the server and logs in."""
        return {"MLFLOW_TRACKING_URI": self.tracking_uri} | self.login.client_environment() | QUIET

    def launch(self) -> SupervisedProcess:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            f"--host={LOOPBACK}",
            f"--port={self.port}",
            "--workers=1",
            "--app-name=basic-auth",
        ]
        command += [f"--backend-store-uri=sqlite:///{self.directory / 'mlflow.db'}"]
        command += [f"--artifacts-destination={self.artifacts}"]
        environment = server_environment(self.own_environment | QUIET | NO_JOBS | self._authentication())
        return SupervisedProcess(command, environment=environment, log_path=self.log_path, grace_seconds=5.0)

    def _authentication(self) -> dict[str, str]:
        """Write the configuration of MLflow's basic authentication and return the variables that go with it.

        The users' database is made anew: MLflow keeps a password that is in it, whatever the configuration says.
        """
        users = self.directory / "users.db"
        users.unlink(missing_ok=True)
        settings = {
            "default_permission": "NO_PERMISSIONS",
            "database_uri": f"sqlite:///{users}",
            "auth_cache_ttl_seconds": CHECKED_PASSWORD_SECONDS,
        }
        lines = ["[mlflow]", *(f"{name} = {value}".replace("%", "%%") for name, value in settings.items())]
        path = write_private(self.directory / "basic_auth.ini", "\n".join(lines) + "\n")
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(path),
            "MLFLOW_AUTH_ADMIN_USERNAME": self.login.username,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.login.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",  # refuses routes for which MLflow has no rule
        }

    @property
    def url(self) -> str:
        return self.tracking_uri

    def is_ready(self) -> bool:
        return answers_http(f"{self.tracking_uri}/health")
