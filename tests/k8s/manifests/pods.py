"""Policies of every pod: not root, read-only root, no token, limits, pinned images, probes, sized shared memory."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.k8s.manifests.schemas import Document, name_of

GPU = "nvidia.com/gpu"
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # where Kubernetes' clients look for it
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
LIVENESS_SECONDS = 600  # as KubeRay's own probes
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "Ki": 2**10, "M": 1e6, "Mi": 2**20, "G": 1e9, "Gi": 2**30, "T": 1e12, "Ti": 2**40}


@dataclass(frozen=True)
class Pod:
    """A pod template of a manifest.

    Attributes:
        owner: Kind/name of its manifest, and which of its templates it is.
        template: metadata and spec.
        ray: "head", "worker", or "" for other pods.
        start_parameters: rayStartParams of its group.
        long_lived: whether it runs until it is stopped, and so needs probes.
    """

    owner: str
    template: Document
    ray: str = ""
    start_parameters: dict[str, str] | None = None
    long_lived: bool = True

    @property
    def spec(self) -> Document:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.template.get("metadata", {}).get("labels", {})


def pods_of(documents: Iterable[Document]) -> Iterator[Pod]:
    """Yield every pod template of the manifests."""
    for document in documents:
        name, kind, spec = name_of(document), document["kind"], document.get("spec", {})
        if kind in ("Deployment", "StatefulSet", "DaemonSet"):
            yield Pod(name, spec["template"])
        elif kind == "Job":
            yield Pod(name, spec["template"], long_lived=False)
        elif kind == "CronJob":
            yield Pod(name, spec["jobTemplate"]["spec"]["template"], long_lived=False)
        elif kind in ("RayJob", "RayCronJob"):
            job = spec.get("jobTemplate", spec)
            yield Pod(f"{name} submitter", job["submitterPodTemplate"], long_lived=False)
        cluster = ray_cluster_of(document)
        if cluster:
            head = cluster["headGroupSpec"]
            yield Pod(f"{name} head", head["template"], "head", head.get("rayStartParams", {}))
            for group in cluster.get("workerGroupSpecs", []):
                yield Pod(f"{name} {group['groupName']}", group["template"], "worker", group.get("rayStartParams", {}))


def ray_cluster_of(document: Document) -> Document | None:
    """Return the spec of the Ray cluster that a manifest creates, or None."""
    spec = document.get("spec", {})
    if document["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec if document["kind"] == "RayCluster" else spec.get("rayClusterSpec")


def pod_mistakes(documents: Iterable[Document]) -> Iterator[str]:
    """Yield one line for each policy violation of a pod."""
    for document in documents:
        for pod in pods_of([document]):
            checks = [security_mistakes(pod.spec), resource_mistakes(pod), image_mistakes(pod.spec)]
            checks += [token_mistakes(pod.spec)]
            checks += [probe_mistakes(pod)] if pod.long_lived else []
            checks += [ray_mistakes(pod)] if pod.ray else []
            yield from (f"{pod.owner}: {line}" for check in checks for line in check)
        cluster = ray_cluster_of(document) or {}
        yield from (f"{name_of(document)}: {line}" for line in autoscaler_token_mistakes(cluster))
        options = cluster.get("autoscalerOptions")
        if options:
            container = {"name": "autoscaler", **options}
            lines = [*container_security_mistakes(container), *limit_mistakes(container)]
            yield from (f"{name_of(document)}: {line}" for line in lines)


def security_mistakes(spec: Document) -> Iterator[str]:
    """Yield violations of the restricted Pod Security Standard, and of a read-only root."""
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "securityContext: runAsNonRoot must be true and runAsUser a number above 0"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile.type must be RuntimeDefault"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} must not be set"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a hostPath: use emptyDir or a claim"
    for container in containers_of(spec):
        yield from container_security_mistakes(container)


def container_security_mistakes(container: Document) -> Iterator[str]:
    """Yield violations in a container's security context."""
    context, name = container.get("securityContext", {}), container["name"]
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"container {name}: allowPrivilegeEscalation must be false, privileged unset"
    if "ALL" not in context.get("capabilities", {}).get("drop", []) or context["capabilities"].get("add"):
        yield f"container {name}: capabilities must drop ALL and add none"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"container {name}: readOnlyRootFilesystem must be true; what is written belongs on a volume"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield f"container {name}: must not run as root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"container {name}: hostPort must not be set"


def token_mistakes(spec: Document) -> Iterator[str]:
    """Yield tokens of Kubernetes' API in containers of a pod; none of them asks the API."""
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: code in the pod could ask Kubernetes' API"
    tokens = token_volumes(spec)
    for container in containers_of(spec):
        if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}:
            yield f"container {container['name']}: mounts a token of Kubernetes' API, which is the autoscaler's alone"


def autoscaler_token_mistakes(cluster: Document) -> Iterator[str]:
    """Yield an autoscaler without a token, and a token where there is no autoscaler."""
    tokens = token_volumes(cluster["headGroupSpec"]["template"]["spec"]) if cluster else set()
    mounts = cluster.get("autoscalerOptions", {}).get("volumeMounts", [])
    mounted = {mount["name"] for mount in mounts if mount["mountPath"] == TOKEN_PATH} & tokens
    if cluster.get("enableInTreeAutoscaling") and not mounted:
        yield f"the autoscaler needs a projected serviceAccountToken of the head's volumes at {TOKEN_PATH}"
    if not cluster.get("enableInTreeAutoscaling") and tokens:
        yield "the head has a token of Kubernetes' API, but no autoscaler that needs it"


def token_volumes(spec: Document) -> set[str]:
    """Return the names of a pod's volumes that hold a token of its ServiceAccount."""
    return {
        volume["name"]
        for volume in spec.get("volumes", [])
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", []))
    }


def resource_mistakes(pod: Pod) -> Iterator[str]:
    """Yield missing limits, and requests of Ray nodes that differ from their limits."""
    for container in containers_of(pod.spec):
        yield from limit_mistakes(container)
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        if pod.ray and requests != limits:
            yield f"container {container['name']}: requests {requests} must equal limits {limits} on a node of Ray"


def limit_mistakes(container: Document) -> Iterator[str]:
    """Yield missing limits and requests of a container."""
    for part in ("requests", "limits"):
        for resource in ("cpu", "memory"):
            if resource not in container.get("resources", {}).get(part, {}):
                yield f"container {container['name']}: resources.{part}.{resource} is missing"


def image_mistakes(spec: Document) -> Iterator[str]:
    """Yield images without a pinned version: a tag, or a digest, with or without a tag before it."""
    for container in containers_of(spec):
        name, has_digest, digest = container.get("image", "").partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        if has_digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield f"container {container['name']}: {digest!r} is no digest: sha256: and 64 hexadecimal digits"
        elif not has_digest and (not tag or tag == "latest"):
            yield f"container {container['name']}: image {name!r} needs a version as its tag, or a digest"


def probe_mistakes(pod: Pod) -> Iterator[str]:
    """Yield missing probes."""
    for container in pod.spec["containers"]:
        missing = [one for one in ("startupProbe", "readinessProbe", "livenessProbe") if one not in container]
        if missing:
            yield f"container {container['name']}: {', '.join(missing)} missing"


def ray_mistakes(pod: Pod) -> Iterator[str]:
    """Yield mismatches of `ray start`, limits and shared memory, and what ends a pod too early or too late."""
    container, parameters = pod.spec["containers"][0], pod.start_parameters or {}
    limits = container.get("resources", {}).get("limits", {})
    expected = {"num-cpus": limits.get("cpu") if pod.ray == "worker" else "0", "num-gpus": limits.get(GPU)}
    for key, value in expected.items():
        if parameters.get(key) != value:
            yield f"rayStartParams.{key} is {parameters.get(key)!r}, the container says {value!r}"
    store, memory = quantity(parameters.get("object-store-memory", "0")), quantity(limits.get("memory", "0"))
    shared = quantity(_shared_memory(pod.spec, container))
    if not 0 < store <= shared < memory:
        yield (
            f"object-store-memory {store:.0f} must fit into /dev/shm ({shared:.0f} bytes, an emptyDir of medium "
            f"Memory with a sizeLimit), and that into the memory limit ({memory:.0f})"
        )
    yield from _drain_mistakes(pod.spec, container)


def _drain_mistakes(spec: Document, container: Document) -> Iterator[str]:
    variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    drain, grace = variables.get(DRAIN), spec.get("terminationGracePeriodSeconds", 30)
    if "preStop" in container.get("lifecycle", {}):
        yield "a preStop hook comes before Ray's own drain, and both wait: leave it out"
    if not drain or float(drain) <= 0:
        yield f"{DRAIN} is missing: training would get no notice"
    elif grace < float(drain) + 30:
        yield f"terminationGracePeriodSeconds {grace} must be the drain of {drain} s and 30 s more"
    live = container.get("livenessProbe", {})
    seconds = live.get("periodSeconds", 10) * live.get("failureThreshold", 3)
    if seconds < LIVENESS_SECONDS:
        yield f"livenessProbe gives up after {seconds} s, not {LIVENESS_SECONDS}: a slow dashboard would end the job"
    for key in ("not-ready", "unreachable"):
        waits = [
            one.get("tolerationSeconds") for one in spec.get("tolerations", []) if one.get("key", "").endswith(key)
        ]
        if not waits or waits[0] is None or waits[0] > 60:
            yield f"no toleration of node.kubernetes.io/{key} with up to 60 s: a machine that died is noticed late"


def containers_of(spec: Document) -> list[Document]:
    """Return all containers of a pod."""
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def quantity(text: Any) -> float:
    """Return the number that a Kubernetes quantity stands for: "500m" is 0.5, "1Ki" 1024."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if match is None or match[2] not in UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return float(match[1]) * UNITS[match[2]]


def _shared_memory(spec: Document, container: Document) -> str:
    mounted = {mount["name"] for mount in container.get("volumeMounts", []) if mount["mountPath"] == "/dev/shm"}
    for volume in spec.get("volumes", []):
        if volume["name"] in mounted and volume.get("emptyDir", {}).get("medium") == "Memory":
            return str(volume["emptyDir"].get("sizeLimit", 0))
    return "0"
