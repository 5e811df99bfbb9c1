"""Checks for jobs submitted by `ray job submit`, which do not see the environment of the user's shell.

Such a job runs on a node, in an unpacked copy of the working directory that is removed later, with the environment of
the node: settings whose default comes from the environment or the current folder are checked here.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

_NOT_PASSED = "`ray job submit` passes no variables of your shell"


def is_submitted(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this program runs as a job submitted to a Ray cluster.

    Ray's job manager (2.60, `job_supervisor.py`) gives a driver its metadata in this variable, and the submission's id
    with it.
    """
    try:
        settings = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    except ValueError:
        return False
    return "job_submission_id" in (settings.get("metadata") or {})


def check_submitted(storage: str, tracking_uri: str) -> list[str]:
    """Refuse the default storage in a submitted job; return a warning if the job will not be tracked.

    Args:
        storage: base URL of the job.
        tracking_uri: of MLflow, or empty.

    Raises:
        ValueError: if the storage is the default, a folder of the unpacked working directory.
    """
    if not is_submitted():
        return []
    if not os.environ.get("BREWCLIP_STORAGE") and storage == default_storage():
        raise ValueError(
            f"this submitted job has no storage ({_NOT_PASSED}, and the current folder of a node keeps nothing): set "
            "BREWCLIP_STORAGE on the cluster's nodes or in the job's runtime environment, or give --storage s3://bucket"
        )
    if tracking_uri:
        return []
    return [
        f"nothing is recorded in MLflow: MLFLOW_TRACKING_URI is not set in this submitted job ({_NOT_PASSED}); set it "
        "on the cluster's nodes or in the job's runtime environment, or give --tracking.uri"
    ]


def default_storage() -> str:
    """Return the default storage: BREWCLIP_STORAGE, else the folder `storage` in the current one."""
    return os.environ.get("BREWCLIP_STORAGE") or (Path.cwd() / "storage").as_uri()
