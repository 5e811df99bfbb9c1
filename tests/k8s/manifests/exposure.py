"""Policies across manifests: secrets outside, separate keys, closed networks, no placeholders, valid references."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.k8s.manifests.pods import pods_of
from tests.k8s.manifests.schemas import Document, name_of

OUTSIDE_PORTS = {443, 6443}  # HTTPS, and the API server for the autoscaler
METADATA_SERVICES = {"0.0.0.0/0": {"169.254.0.0/16"}, "::/0": {"fe80::/10", "fd00:ec2::/32"}}
DNS_CACHE = "169.254.20.10/32"
PLACEHOLDERS = re.compile(r"CHANGE-ME|\b(?:IMAGE|PRESET|RUN|SWEEP|MIN|MAX|(?:OPERATOR|MONITORING)-NAMESPACE)\b")
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
SECRET_TEXT = re.compile(
    r"[a-z+0-9]+://[^/\s:@$]+:[^/\s@$]+@"  # user:password@ in a URL
    r"|\bA(?:KIA|SIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|--?\S*(?:pass(?:word|wd)?|secret|token)[= ](?!\$)\S",
    re.IGNORECASE,
)


def strings_of(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a document with its place."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from strings_of(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from strings_of(part, f"{place}.{index}")
    elif isinstance(value, str):
        yield place, value


def placeholder_mistakes(documents: Sequence[Document]) -> Iterator[str]:
    """Yield remaining placeholders; a setting once, not where it was copied."""
    settings = [one for one in documents if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "settings"]
    copied = {value for one in settings for value in one["data"].values()}
    for document in documents:
        for place, text in strings_of(document):
            if PLACEHOLDERS.search(text) and (document in settings or text not in copied):
                yield f"{name_of(document)}: {place} is still {text!r}: fill in k8s/base/settings.env"


def secret_mistakes(documents: Sequence[Document]) -> Iterator[str]:
    """Yield secrets in a manifest instead of a Secret created by the user."""
    for document in documents:
        name = name_of(document)
        if document["kind"] == "Secret":
            yield f"{name}: a Secret does not belong into a manifest: make it by `kubectl create secret`"
        for place, text in strings_of(document):
            if SECRET_TEXT.search(text):
                yield f"{name}: {place} holds a secret in plain text"
        for variable in variables_of(document):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{name}: variable {variable['name']} has a value in plain text: take it from a Secret"
        if document["kind"] == "ConfigMap":
            for key in document.get("data", {}):
                if SECRET_NAME.search(key.replace("-", "_")):
                    yield f"{name}: {key} belongs into a Secret"


def variables_of(value: Any) -> Iterator[Document]:
    """Yield every entry of every `env` list, at any depth."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "env" and isinstance(part, list):
                yield from part
            else:
                yield from variables_of(part)
    elif isinstance(value, list):
        for part in value:
            yield from variables_of(part)


def root_key_mistakes(documents: Sequence[Document]) -> Iterator[str]:
    """Yield uses of the root key of the object storage other than as the server's root user."""
    root = {name for document in documents for name in _root_secrets(document)}
    for document in documents:
        used = [name for name in _secret_references(document) if name in root]
        if len(used) > len(_root_secrets(document)):
            yield f"{name_of(document)}: uses the root key of the object storage: take the Secret storage-credentials"


def _root_secrets(document: Document) -> list[str]:
    """Return the name of the Secret of each variable that holds the server's root user or password."""
    roots = [variable for variable in variables_of(document) if variable["name"].startswith("MINIO_ROOT_")]
    return [name for variable in roots for name in _secret_references(variable)]


def _secret_references(value: Any) -> Iterator[str]:
    """Yield the name of a Secret for each reference: a variable, all variables, or a volume."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key in ("secretKeyRef", "secretRef"):
                yield part["name"]
            elif key == "secretName":
                yield part
            else:
                yield from _secret_references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _secret_references(part)


def network_mistakes(documents: Sequence[Document]) -> Iterator[str]:
    """Yield ports open to outside, and missing network policies."""
    policies = [one for one in documents if one["kind"] == "NetworkPolicy"]
    if not any(_closes_everything(policy["spec"]) for policy in policies):
        yield "no NetworkPolicy closes all pods of the namespace: podSelector {} with policyTypes [Ingress, Egress]"
    if not any(_lets_names_resolve(policy["spec"]) for policy in policies):
        yield "no NetworkPolicy lets all pods reach DNS: port 53, UDP and TCP, of the namespace kube-system"
    for document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind in ("Ingress", "Gateway", "HTTPRoute"):
            yield f"{name_of(document)}: opens a port to outside: use `kubectl port-forward`"
        if kind == "Service" and spec.get("type", "ClusterIP") != "ClusterIP":
            yield f"{name_of(document)}: type {spec['type']} opens its ports to outside: ClusterIP"
        for place, text in strings_of(document):
            if place.endswith("headGroupSpec.serviceType") and text != "ClusterIP":
                yield f"{name_of(document)}: {place} {text} opens the dashboard to outside: ClusterIP"
    for policy in policies:
        for number, rule in enumerate(policy["spec"].get("ingress", [])):
            yield from (f"{name_of(policy)}: ingress {number}: {line}" for line in _rule_mistakes(rule))
        for number, rule in enumerate(policy["spec"].get("egress", [])):
            lines = _egress_mistakes(rule, policy["spec"]["podSelector"])
            yield from (f"{name_of(policy)}: egress {number}: {line}" for line in lines)


def _closes_everything(spec: Document) -> bool:
    both = {"Ingress", "Egress"} <= set(spec.get("policyTypes", []))
    return spec.get("podSelector") == {} and both and not spec.get("ingress") and not spec.get("egress")


def _lets_names_resolve(spec: Document) -> bool:
    return spec.get("podSelector") == {} and any(_is_dns(rule) for rule in spec.get("egress", []))


def _is_dns(rule: Document) -> bool:
    ports = {(port.get("port"), port.get("protocol", "TCP")) for port in rule.get("ports", [])}
    names = [peer.get("namespaceSelector", {}).get("matchLabels", {}) for peer in rule.get("to", [])]
    return ports == {(53, "UDP"), (53, "TCP")} and {"kubernetes.io/metadata.name": "kube-system"} in names


def _egress_mistakes(rule: Document, pods: Document) -> Iterator[str]:
    ports = {port.get("port") for port in rule.get("ports", [])}
    if not rule.get("to"):
        yield "has no `to`: everything may be reached"
    for peer in rule.get("to", []):
        block = peer.get("ipBlock", {})
        if "namespaceSelector" in peer and (peer["namespaceSelector"] == {} or not _is_dns(rule)):
            yield "another namespace may be reached on ports other than those of DNS"
        if block and block["cidr"] != DNS_CACHE:
            if not pods:
                yield "every pod may leave the cluster: select those that must"
            if not ports or not ports <= OUTSIDE_PORTS:
                yield f"ports {sorted(map(str, ports)) or 'all'} are open to outside: {sorted(OUTSIDE_PORTS)} alone"
            missing = METADATA_SERVICES.get(block["cidr"], set()) - set(block.get("except", []))
            if missing:
                yield f"except of {block['cidr']} lacks {', '.join(sorted(missing))}, where clouds give out identities"
        elif block and not _is_dns(rule):
            yield f"{DNS_CACHE} may be reached on ports other than those of DNS"


def _rule_mistakes(rule: Document) -> Iterator[str]:
    if not rule.get("from"):
        yield "has no `from`: everyone may enter"
    for source in rule.get("from", []):
        if "ipBlock" in source:
            yield "names addresses instead of pods"
        elif source.get("podSelector") == {} or source.get("namespaceSelector") == {}:
            yield "an empty selector lets everyone enter"
        elif "namespaceSelector" in source and not rule.get("ports"):
            yield "another namespace may reach all ports: name them"


def reference_mistakes(documents: Sequence[Document]) -> Iterator[str]:
    """Yield dangling references: ConfigMap keys, services in URLs, service accounts, selectors without pods."""
    keys = {(one["metadata"]["name"], key) for one in documents if one["kind"] == "ConfigMap" for key in one["data"]}
    accounts = {one["metadata"]["name"] for one in documents if one["kind"] == "ServiceAccount"}
    services = {one["metadata"]["name"] for one in documents if one["kind"] == "Service"}
    pods = list(pods_of(documents))
    for document in documents:
        name = name_of(document)
        for variable in variables_of(document):
            source = variable.get("valueFrom", {}).get("configMapKeyRef")
            if source and (source["name"], source["key"]) not in keys and not source.get("optional"):
                yield f"{name}: variable {variable['name']} names no key of ConfigMap {source['name']}: {source['key']}"
        for place, text in strings_of(document):
            host = re.match(r"(?:\w|\+)+://(?:\w+@)?([a-z][a-z0-9-]*):\d+", text)
            if host and host[1] not in services:
                yield f"{name}: {place}: there is no Service {host[1]!r}"
        if document["kind"] == "ConfigMap" or "spec" not in document:
            continue
        selector = document["spec"].get("selector") or document["spec"].get("podSelector") or {}
        wanted = selector.get("matchLabels", selector if document["kind"] == "Service" else {})
        if wanted and not any(wanted.items() <= pod.labels.items() for pod in pods):
            yield f"{name}: its selector {wanted} matches no pod"
    for pod in pods:
        account = pod.spec.get("serviceAccountName")
        if account and account not in accounts:
            yield f"{pod.owner}: there is no ServiceAccount {account!r}"
