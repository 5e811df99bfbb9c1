"""Checks of addresses: MLflow's, and S3's in the environment; a wrong one costs minutes of retries later."""

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from urllib.parse import urlsplit

# mlflow.tracking._tracking_service.utils and mlflow.store.db.db_types (MLflow 3).
_SCHEMES = frozenset(
    {"file", "http", "https", "databricks", "databricks-uc", "uc", "postgresql", "mysql", "sqlite", "mssql"}
)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def tracking_problem(uri: str) -> str:
    """Return what is wrong with a tracking URI; empty records nothing, and a plain path is a folder."""
    scheme, colon, rest = uri.partition(":")
    if not uri or uri == "databricks" or not colon or "/" in scheme:
        return ""
    kind = scheme.split("+")[0].lower()  # mysql+pymysql
    if kind in ("http", "https"):
        return "" if _is_http(uri) else "must be http://HOST:PORT or https://HOST"
    if kind in _SCHEMES or any(one.name == kind for one in entry_points(group="mlflow.tracking_store")):
        return "" if rest.strip("/") else "names no place behind its scheme"
    return "has a scheme that MLflow does not know: http://HOST:PORT, https://HOST, sqlite:///FILE or file:///FOLDER"


def check_endpoint(urls: list[str], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse an S3 endpoint that is no URL, if any of the URLs is on S3.

    Raises:
        ValueError: one line that names the variable.
    """
    if not any(url.startswith("s3://") for url in urls):
        return
    for name in _ENDPOINTS:
        value = environment.get(name, "")
        if value and not _is_http(value):
            raise ValueError(f"{name} {value!r} in the environment must be http://HOST:PORT or https://HOST")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, or a broken IPv6 address
        return False
