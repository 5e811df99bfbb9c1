"""Schema validation: core kinds by kubernetes-validate, Ray's kinds by KubeRay's CRDs, unknown keys refused.

Kinds of Prometheus and Kueue are held against `other_kinds`.

The CRDs are files, or the output of `kubectl get crd rayclusters.ray.io rayjobs.ray.io -o yaml`. Their rules in CEL
(`x-kubernetes-validations`) are not evaluated.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.k8s.manifests.other_kinds import OTHER_KINDS, cron_job_schema

Document = dict[str, Any]

KUBERNETES_VERSION = "1.33.0"
RAY_KINDS = ("RayCluster", "RayJob")


def name_of(document: Document) -> str:
    """Return the name of a manifest for messages: Kind/name."""
    return f"{document.get('kind', '?')}/{document.get('metadata', {}).get('name', '?')}"


def schema_mistakes(documents: Iterable[Document], crds: dict[str, Document]) -> Iterator[str]:
    """Yield one line for each value that its schema does not allow.

    Args:
        documents: rendered manifests.
        crds: schema of each Ray kind, from `load_crds`; a missing kind is a mistake, too.
    """
    for document in documents:
        other = OTHER_KINDS.get((document.get("apiVersion", ""), document.get("kind", "")))
        if other is not None:
            yield from _mistakes(jsonschema.Draft202012Validator(other), document)
        elif not document.get("apiVersion", "").startswith("ray.io/"):
            yield from _core_mistakes(document)
        elif document["apiVersion"] != "ray.io/v1":
            yield f"{name_of(document)}: {document['apiVersion']} is not ray.io/v1"
        elif document["kind"] not in crds:
            yield f"{name_of(document)}: no CRD of kind {document['kind']} was given, so it was not checked"
        else:
            yield from _mistakes(jsonschema.Draft202012Validator(crds[document["kind"]]), document)


def load_crds(path: Path) -> dict[str, Document]:
    """Read KubeRay's CRDs and return a JSON schema without unknown keys for each kind at version v1.

    Args:
        path: a YAML file, or a folder of them; lists and multi-document files are split.

    Raises:
        ValueError: if RayCluster or RayJob is missing.
    """
    found = {}
    for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        found |= _read_crds(file)
    missing = ", ".join(kind for kind in RAY_KINDS if kind not in found)
    if missing:
        raise ValueError(
            f"{path} holds no CRD of {missing}: give KubeRay's files or what `kubectl get crd -o yaml` prints"
        )
    return found | {"RayCronJob": cron_job_schema(found["RayJob"])}


@functools.cache
def _read_crds(file: Path) -> dict[str, Document]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 900 kB each: ten times faster
    found = {}
    for document in filter(None, yaml.load_all(file.read_text(), loader)):
        for crd in document.get("items", [document]):
            if crd.get("kind") == "CustomResourceDefinition" and crd["spec"]["names"]["kind"] in RAY_KINDS:
                (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
                found[crd["spec"]["names"]["kind"]] = _closed(version["schema"]["openAPIV3Schema"], top=True)
    return found


def _closed(schema: Any, top: bool = False) -> Any:
    """Return an OpenAPI schema as a JSON schema in which objects allow no additional keys."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {key: _closed(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
    if schema.get("nullable") is True:
        return {"anyOf": [closed, {"type": "null"}]}
    if top:  # the API server itself checks metadata, the CRD says only that it is an object
        closed["properties"]["metadata"] = _METADATA
        closed["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return closed


_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
    },
    "required": ["name"],
    "additionalProperties": False,
}


def _core_mistakes(document: Document) -> Iterator[str]:
    try:
        validator = _core_validator(document.get("apiVersion", ""), document.get("kind", ""))
    except kubernetes_validate.SchemaNotFoundError:
        yield f"{name_of(document)}: {document.get('apiVersion')} {document.get('kind')} is no kind of Kubernetes"
        return
    yield from _mistakes(validator, document)


def _mistakes(validator: jsonschema.Draft202012Validator, document: Document) -> Iterator[str]:
    for error in validator.iter_errors(document):
        yield f"{name_of(document)}: {_place(error)}: {error.message[:200]}"


@functools.cache
def _core_validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    """Return the strict validator of a core kind, from the schemas of kubernetes-validate.

    The package's own `validate` reads its two megabytes of definitions for every document and stops at one mistake.

    Raises:
        kubernetes_validate.SchemaNotFoundError: there is no such kind.
    """
    group, _, version = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}{'-' if group else ''}{version}.json"
    folder = f"kubernetes-json-schema/v{KUBERNETES_VERSION}-local-strict"
    try:
        schema = schema_contents(f"{folder}/{name}", KUBERNETES_VERSION)
    except FileNotFoundError:
        raise kubernetes_validate.SchemaNotFoundError(kind, KUBERNETES_VERSION, api_version) from None
    definitions = Resource.from_contents(_definitions(folder))
    return jsonschema.Draft202012Validator(schema, registry=definitions @ Registry())


@functools.cache
def _definitions(folder: str) -> Document:
    return schema_contents(f"{folder}/_definitions.json", KUBERNETES_VERSION)


def _place(error: jsonschema.ValidationError) -> str:
    return ".".join(str(part) for part in error.absolute_path) or "top"
