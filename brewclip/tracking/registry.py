"""Checkpoints by name in MLflow's model registry, such as `models:/brewclip@best`.

A version is a reference, not a pickled model: its source is the checkpoint among its run's artifacts, and its tag is
the URL of the same checkpoint in storage, from which it is loaded.
"""

import os
import re
from typing import Any

from brewclip.errors import UserError
from brewclip.tracking.tracker import open_client, reason_of

PREFIX = "models:/"
URL_TAG = "brewclip.checkpoint_url"
ARTIFACT = "checkpoint"  # folder of the best checkpoint among the artifacts of an MLflow run


def is_registered_name(name: str) -> bool:
    """Return whether a text is written as the name of a registered model."""
    return name.startswith(PREFIX)


def resolve_model(name: str, tracking_uri: str = "") -> str:
    """Return the URL of a registered checkpoint; any other text is returned unchanged.

    Args:
        name: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: MLflow's address; empty takes MLFLOW_TRACKING_URI.

    Raises:
        UserError: if there is no such name, or MLflow cannot be reached.
    """
    if not is_registered_name(name):
        return name
    parts = re.fullmatch(rf"{PREFIX}([^/@]+)(?:@([^/@]+)|/(\d+))", name)
    if parts is None:
        raise UserError(f"{name!r} is no name of a registered model: models:/NAME@ALIAS or models:/NAME/VERSION")
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise UserError(f"{name} is looked up in MLflow: give --tracking.uri or set MLFLOW_TRACKING_URI")
    url = _find_version(open_client(uri), name, *parts.groups()).tags.get(URL_TAG, "")
    if not url:
        raise UserError(f"{name} has no tag {URL_TAG}: it was not registered by jobs/sweep.py")
    return url


def register_checkpoint(tracking_uri: str, model: str, alias: str, run_id: str, url: str, artifact: str) -> str:
    """Register a checkpoint and return its version; the same checkpoint is registered once.

    Args:
        tracking_uri: MLflow's address.
        model, alias: the name, `models:/MODEL@ALIAS`.
        run_id: MLflow run that made the checkpoint.
        url: folder of the checkpoint in storage.
        artifact: its folder among the artifacts of that run.
    """
    client = open_client(tracking_uri)
    if not client.search_registered_models(filter_string=f"name = '{model}'"):
        client.create_registered_model(model, description="Checkpoints of BrewCLIP; see the tag of a version")
    known = client.search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
    version = next((one.version for one in known if one.tags.get(URL_TAG) == url), None)
    if version is None:
        source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
        version = client.create_model_version(model, source, run_id, tags={URL_TAG: url}, await_creation_for=0).version
    client.set_registered_model_alias(model, alias, version)
    return str(version)


def _find_version(client: Any, name: str, model: str, alias: str | None, version: str | None) -> Any:
    from mlflow.exceptions import MlflowException, RestException

    try:
        if alias:
            return client.get_model_version_by_alias(model, alias)
        return client.get_model_version(model, version)
    except RestException as error:
        raise UserError(f"{name} is not registered in MLflow: {' '.join(str(error).split())[:150]}") from None
    except MlflowException as error:
        raise UserError(f"{name} cannot be looked up: MLflow does not answer, {reason_of(error)}") from None
