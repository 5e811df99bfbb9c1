"""Policies of where Ray's pods run: heads not on spot machines, none taken away to save one, priorities that exist."""

from collections.abc import Iterable, Iterator

from tests.k8s.manifests.pods import Pod, pods_of
from tests.k8s.manifests.schemas import Document

# Labels of spot machines by cloud: EKS, Karpenter, GKE, AKS
SPOT = {
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
UNDISTURBED = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def machine_mistakes(documents: Iterable[Document]) -> Iterator[str]:
    """Yield one line for each mistake of a pod's placement."""
    documents = list(documents)
    classes = {one["metadata"]["name"] for one in documents if one["kind"] == "PriorityClass"}
    for pod in pods_of(documents):
        lines = [*head_mistakes(pod)] if pod.ray == "head" else []
        if pod.ray:
            annotations = pod.template["metadata"].get("annotations", {})
            for key, value in UNDISTURBED.items():
                if annotations.get(key) != value:
                    lines.append(
                        f"annotation {key} must be {value!r}: a machine less would cost the steps since the last"
                    )
        wanted = pod.spec.get("priorityClassName")
        if wanted and wanted not in classes:
            lines.append(f"there is no PriorityClass {wanted!r}")
        if pod.ray and not wanted:
            lines.append("priorityClassName is missing")
        yield from (f"{pod.owner}: {line}" for line in lines)


def head_mistakes(pod: Pod) -> Iterator[str]:
    """Yield labels of spot machines that a head does not keep away from."""
    terms = (
        pod.spec.get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        .get("nodeSelectorTerms", [])
    )
    for key, value in SPOT.items():
        wanted = {"key": key, "operator": "NotIn", "values": [value]}
        if not terms or not all(wanted in term.get("matchExpressions", []) for term in terms):
            yield f"nodeAffinity: {key} must be NotIn [{value}]: a job does not survive its head"
