"""MLflow tracking from a background thread, so that training never waits for the server.

A run is identified by its tag `brewclip.run_url`, so a restarted job resumes the same MLflow run. While the server is
unavailable, records wait in memory, in order, and are delivered when it is back.
"""

import os
import platform
import queue
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from brewclip.config.extras import check_installed
from brewclip.config.masking import without_secrets
from brewclip.errors import UserError
from brewclip.tracking.sources import git_commit
from brewclip.version import __version__

RUN_TAG = "brewclip.run_url"
SUPERSEDED_TAG = "brewclip.superseded"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: its page shows the run below the parent
_LONGEST_PAUSE_SECONDS = 5.0
_LONGEST_PARAMETER = 500
_REFUSED_LOGIN = ("UNAUTHENTICATED", "PERMISSION_DENIED")
Action = Callable[[Any, str], Any]


class Tracker:
    """One run in MLflow; without a URI, every call is accepted and nothing is recorded.

    Args:
        uri: tracking URI, or empty.
        experiment: name of the experiment; created if missing.
        run_name: name of the run.
        run_url: where the run stores its files; a run of the same URL is resumed.
        tags: further tags of the run.
        run_id: id of the run, if it exists; its status is left as it is until `finish`.

    Attributes:
        run_id: id of the run, empty until it is known.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_url: str,
        *,
        tags: Mapping[str, str] | None = None,
        run_id: str = "",
    ) -> None:
        self.uri, self.experiment, self.run_name, self.run_url = uri, experiment, run_name, run_url
        self.tags = dict(tags or {})
        self.run_id = run_id
        self._is_refused = False
        self._actions: queue.Queue[Action | None] = queue.Queue()
        self._thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)
        if uri:
            open_client(uri)  # imported before there are two threads: importing mlflow is not thread-safe
            self._thread.start()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; those already recorded are not changed."""
        texts = {name: without_secrets(str(value))[:_LONGEST_PARAMETER] for name, value in params.items()}
        self._put(lambda client, run_id: _log_params(client, run_id, texts))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a step, with the time of this call."""
        if not self.uri:  # importing MLflow takes two seconds of a core
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._put(lambda client, run_id: client.log_batch(run_id, metrics=rows))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        pairs = {name: without_secrets(value) for name, value in tags.items()}
        self._put(lambda client, run_id: [client.set_tag(run_id, name, value) for name, value in pairs.items()])

    def log_text(self, text: str, file_name: str) -> None:
        """Record a text as an artifact."""
        self._put(lambda client, run_id: client.log_text(run_id, without_secrets(text), file_name))

    def log_bytes(self, data: bytes, file_name: str) -> None:
        """Record the content of a file as an artifact."""
        self._put(lambda client, run_id: _log_bytes(client, run_id, data, file_name))

    def flush(self, wait_seconds: float = 60.0) -> bool:
        """Wait until everything so far is recorded; return whether it is."""
        if not self.uri:
            return True
        done, deadline = threading.Event(), time.monotonic() + wait_seconds
        self._put(lambda client, run_id: done.set())
        while not done.wait(0.1) and not self._is_refused and time.monotonic() < deadline:
            pass
        return done.is_set()

    def finish(self, status: str = "FINISHED", *, wait_seconds: float = 120.0) -> int:
        """Deliver pending records, close the run, and return the number of records that could not be delivered.

        Args:
            status: `FINISHED`, `FAILED` or `KILLED`; empty leaves it as it is.
            wait_seconds: how long to wait for an unavailable server.
        """
        if not self.uri:
            return 0
        if status:
            self._put(lambda client, run_id: client.set_terminated(run_id, status))
        self._actions.put(None)
        self._thread.join(wait_seconds)
        left = self._actions.qsize()
        if self._thread.is_alive():
            print(f"tracking: {left} records were not delivered to {self.uri}", file=sys.stderr, flush=True)
        return left if self._thread.is_alive() else 0

    def _put(self, action: Action) -> None:
        if self.uri:
            self._actions.put(action)

    def _deliver(self) -> None:
        client = self._persist(lambda: open_client(self.uri))
        self.run_id = self.run_id or self._persist(lambda: self._find_or_create(client)) or ""
        if not self.run_id:
            self._is_refused = True
            print(f"tracking: nothing of {self.run_name} is recorded in MLflow", file=sys.stderr, flush=True)
            while self._actions.get() is not None:
                pass
            return
        while (action := self._actions.get()) is not None:
            self._persist(lambda action=action: action(client, self.run_id))  # type: ignore[misc]

    def _persist(self, operation: Callable[[], Any]) -> Any:
        """Retry an operation until it succeeds, or until the server refuses it."""
        pause, warned = 0.2, False
        while True:
            try:
                return operation()
            except Exception as error:
                if not _may_pass(error):
                    print(f"tracking: MLflow refuses a record: {reason_of(error)}", file=sys.stderr, flush=True)
                    return None
                if not warned:
                    print(
                        f"tracking: MLflow is away, records wait: {_one_line(error)}",
                        file=sys.stderr,
                        flush=True,
                    )
                    warned = True
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _find_or_create(self, client: Any) -> str:
        experiment_id = _experiment_id(client, self.experiment)
        for run in _runs_of(client, experiment_id, self.run_url):
            client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        tags = self.tags | {RUN_TAG: self.run_url}
        return client.create_run(experiment_id, run_name=self.run_name, tags=tags).info.run_id


def supersede(uri: str, experiment: str, run_url: str) -> None:
    """Mark the runs of a URL as superseded, so that the next one starts a new record; nothing without a URI.

    Raises:
        UserError: if MLflow cannot be reached.
    """
    if not uri:
        return
    from mlflow.exceptions import MlflowException

    client = open_client(uri)
    try:
        for run in _runs_of(client, _experiment_id(client, experiment), run_url):
            client.set_tag(run.info.run_id, SUPERSEDED_TAG, "true")
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} cannot be reached to start over: {reason_of(error)}") from error


def describe_environment() -> dict[str, str]:
    """Return the environment of a run as tags: command, commit, versions, machine."""
    from importlib.metadata import version

    packages = ("torch", "ray", "open_clip_torch", "openai-whisper")
    return {
        "brewclip.command": without_secrets(shlex.join(["python", *sys.argv])),
        "brewclip.version": __version__,
        "brewclip.git_commit": git_commit(),
        "brewclip.python": platform.python_version(),
        "brewclip.platform": platform.platform(),
    } | {f"brewclip.version.{name}": version(name) for name in packages}


def find_runs(uri: str, experiment: str, run_url: str) -> list[Any]:
    """Return the runs of a URL that were not started over, newest first; raises MLflow's own errors."""
    client = open_client(uri)
    return _runs_of(client, _experiment_id(client, experiment), run_url)


def open_client(uri: str) -> Any:
    """Return an MLflow client for single requests that may fail; records go through `Tracker`."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # retried here, in order
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    check_installed("mlflow", "MLflow's registry")
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def _experiment_id(client: Any, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment:
        return str(experiment.experiment_id)
    # Without this tag MLflow's page opens on its tools for language models instead of on the runs.
    return str(client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"}))


def _runs_of(client: Any, experiment_id: str, run_url: str) -> list[Any]:
    """Return the runs of a URL that were not started over, newest first."""
    runs = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_url}'")
    return [run for run in runs if SUPERSEDED_TAG not in run.data.tags]


def _log_bytes(client: Any, run_id: str, data: bytes, file_name: str) -> None:
    folder, _, name = file_name.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="brewclip-artifact-") as directory:
        path = Path(directory) / name
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), folder or None)


def _log_params(client: Any, run_id: str, texts: dict[str, str]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(name, text) for name, text in texts.items() if name not in known]
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])


def _may_pass(error: Exception) -> bool:
    """Return whether an error may be temporary, as an outage is, and a refusal is not."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    if isinstance(error, MlflowException):  # the client wraps connection errors in it, and a page that refuses a login
        return error.error_code not in _REFUSED_LOGIN
    return isinstance(error, OSError)


def reason_of(error: Exception) -> str:
    """Return why MLflow refuses a record, in one line."""
    if getattr(error, "error_code", "") in _REFUSED_LOGIN:
        return "it asks for a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
