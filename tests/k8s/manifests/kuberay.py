"""What KubeRay 1.7 itself refuses beyond its schema, after its `validation.go`.

The operator writes such a refusal into an event of the object and does nothing else: `kubectl apply` succeeds. Where a
rule asks for a feature gate, the gates of k8s/operator/values.yaml decide.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from tests.k8s.manifests.pods import ray_cluster_of
from tests.k8s.manifests.schemas import Document, name_of

VALUES = Path(__file__).resolve().parents[3] / "k8s" / "operator" / "values.yaml"
# A cluster's name and "-serve-svc" make 63; a job's cluster has 6 characters more than the job.
NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 47}
DNS_1035_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
QUALIFIED_NAME = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
CRON_FIELD = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*")
FROM_THE_OPERATOR = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")


def kuberay_mistakes(documents: Iterable[Document]) -> Iterator[str]:
    """Yield one line for each refusal of the operator."""
    for document in documents:
        if document["kind"] not in NAME_LENGTHS:
            continue
        lines = [*metadata_mistakes(document)]
        spec = document["spec"]
        if document["kind"] == "RayCronJob":
            lines += cron_mistakes(spec)
            spec = spec["jobTemplate"]
        if document["kind"] != "RayCluster":
            lines += job_mistakes(spec)
            lines += deletion_mistakes(spec)
        cluster = ray_cluster_of(document)
        if cluster:
            annotations = document["metadata"].get("annotations", {})
            lines += [*group_mistakes(cluster), *fault_tolerance_mistakes(cluster, annotations)]
            lines += [*autoscaler_mistakes(cluster), *authentication_mistakes(cluster)]
        yield from (f"{name_of(document)}: KubeRay: {line}" for line in lines)


@cache
def feature_gates() -> dict[str, bool]:
    """Return the operator's feature gates."""
    return {gate["name"]: gate["enabled"] for gate in yaml.safe_load(VALUES.read_text())["featureGates"]}


def metadata_mistakes(document: Document) -> Iterator[str]:
    """Yield names that are too long for what is derived from them, or no label of DNS."""
    name, most = document["metadata"]["name"], NAME_LENGTHS[document["kind"]]
    if len(name) > most:
        yield f"the name has {len(name)} characters, {most} are allowed"
    if not DNS_1035_LABEL.fullmatch(name):
        yield f"the name {name!r} must begin with a letter and have small letters, digits and '-'"


def cron_mistakes(spec: Document) -> Iterator[str]:
    """Yield a schedule that is none."""
    fields = spec["schedule"].split()
    if len(fields) != 5 or not all(CRON_FIELD.fullmatch(field) for field in fields):
        yield f"schedule {spec['schedule']!r} is no line of cron: minute hour day month weekday"


def job_mistakes(spec: Document) -> Iterator[str]:
    """Yield modes and limits of a RayJob that exclude each other."""
    mode, limit = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode!r} is none of {', '.join(SUBMISSION_MODES)}"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes: true"
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "one of rayClusterSpec and clusterSelector must be set"
    if spec.get("clusterSelector") and (spec.get("suspend") or limit > 0 or mode == "SidecarMode"):
        yield "clusterSelector excludes suspend, backoffLimit and SidecarMode"
    if mode == "InteractiveMode" and limit > 0:
        yield "InteractiveMode excludes backoffLimit"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode excludes submitterPodTemplate and submitterConfig"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} {spec[key]} must be above 0"
    for key in ("backoffLimit", "ttlSecondsAfterFinished"):
        if spec.get(key, 0) < 0:
            yield f"{key} {spec[key]} must not be negative"
    try:
        environment = yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        environment = "no YAML"
    if not isinstance(environment, dict | None):
        yield "runtimeEnvYAML is no mapping in YAML"


def deletion_mistakes(spec: Document) -> Iterator[str]:
    """Yield contradictions between deletion rules and the other ways to end a cluster."""
    shutdown, strategy = spec.get("shutdownAfterJobFinishes", False), spec.get("deletionStrategy")
    if not shutdown and spec.get("ttlSecondsAfterFinished", 0) > 0:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if strategy is None:
        return
    if not feature_gates().get("RayJobDeletionPolicy"):
        yield "deletionStrategy needs the feature gate RayJobDeletionPolicy (k8s/operator/values.yaml)"
    rules = strategy.get("deletionRules", [])
    legacy = {"onSuccess", "onFailure"} & set(strategy)
    if rules and shutdown:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if (rules and legacy) or (not rules and len(legacy) < 2):
        yield "deletionStrategy takes deletionRules, or both of onSuccess and onFailure"
    if spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling") and "DeleteWorkers" in str(strategy):
        yield "DeleteWorkers is not supported with enableInTreeAutoscaling"
    yield from _rule_mistakes(rules)


def _rule_mistakes(rules: list[Document]) -> Iterator[str]:
    seconds: dict[tuple[str, str], dict[str, int]] = {}
    for number, rule in enumerate(rules):
        condition = {key: value for key, value in rule["condition"].items() if key != "ttlSeconds"}
        if len(condition) != 1:
            yield f"deletionRules {number}: the condition needs one of jobStatus and jobDeploymentStatus"
            continue
        (key,) = condition.items()
        own = seconds.setdefault(key, {})
        if rule["policy"] in own:
            yield f"deletionRules {number}: a second {rule['policy']} for {key[0]} {key[1]}"
        own[rule["policy"]] = rule["condition"].get("ttlSeconds", 0)
    for (kind, status), own in seconds.items():
        ordered = [own[policy] for policy in DELETION_ORDER if policy in own]
        if ordered != sorted(ordered):
            yield f"deletionRules of {kind} {status}: workers must go before the cluster, the cluster before the job"


def group_mistakes(cluster: Document) -> Iterator[str]:
    """Yield mistakes of the head's group and of groups of workers."""
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        name, parameters = group.get("groupName", "head"), group.get("rayStartParams", {})
        if group.get("resources") and any(parameters.get(key) for key in START_RESOURCES):
            yield f"group {name}: resources stand in rayStartParams and in `resources`: one of them"
        if "labels" in parameters:
            yield f"group {name}: rayStartParams.labels is not supported: `labels` of the group"
        for key, value in group.get("labels", {}).items():
            if not QUALIFIED_NAME.fullmatch(key) or (value and not QUALIFIED_NAME.fullmatch(value)):
                yield f"group {name}: {key}={value} is no label of Kubernetes"
        if not group["template"]["spec"].get("containers"):
            yield f"group {name}: has no container"
    for group in cluster.get("workerGroupSpecs", []):
        name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and None in (least, most):
            yield f"group {name}: minReplicas and maxReplicas must be set without autoscaling"
        if (least or 0) < 0 or (most or 0) < 0:
            yield f"group {name}: minReplicas {least} and maxReplicas {most} must not be negative"
        if None not in (least, most) and least > most:
            yield f"group {name}: minReplicas {least} is above maxReplicas {most}"
        if group.get("suspend") and (autoscaling or not feature_gates().get("RayJobDeletionPolicy")):
            yield f"group {name}: suspend excludes autoscaling and needs the feature gate RayJobDeletionPolicy"


def fault_tolerance_mistakes(cluster: Document, annotations: Document) -> Iterator[str]:
    """Yield settings of Redis at two places."""
    options, head = cluster.get("gcsFaultToleranceOptions"), cluster["headGroupSpec"]
    names = {variable["name"] for variable in head["template"]["spec"]["containers"][0].get("env", [])}
    parameters = head.get("rayStartParams", {})
    if options is None and "RAY_REDIS_ADDRESS" in names and annotations.get("ray.io/ft-enabled") != "true":
        yield "RAY_REDIS_ADDRESS would switch fault tolerance on: set gcsFaultToleranceOptions"
    if options is not None and annotations.get("ray.io/ft-enabled"):
        yield "the annotation ray.io/ft-enabled and gcsFaultToleranceOptions exclude each other"
    if options is not None and (names & set(FROM_THE_OPERATOR) or parameters.get("redis-password")):
        yield "Redis is set in gcsFaultToleranceOptions: not in the head's variables or rayStartParams too"
    if options is not None and annotations.get("ray.io/external-storage-namespace"):
        yield "the annotation ray.io/external-storage-namespace belongs into gcsFaultToleranceOptions"
    if "REDIS_USERNAME" in names or parameters.get("redis-username"):
        yield "the user of Redis belongs into gcsFaultToleranceOptions"


def autoscaler_mistakes(cluster: Document) -> Iterator[str]:
    """Yield settings of the autoscaler that exclude each other."""
    autoscaling, options = cluster.get("enableInTreeAutoscaling", False), cluster.get("autoscalerOptions", {})
    head = cluster["headGroupSpec"]["template"]["spec"]
    variables = {one["name"]: one.get("value") for one in head["containers"][0].get("env", [])}
    version_2 = "RAY_enable_autoscaler_v2"
    if not autoscaling and variables.get(version_2) in ("1", "true"):
        yield f"{version_2} needs enableInTreeAutoscaling: true"
    if autoscaling and options.get("version") and version_2 in variables:
        yield f"autoscalerOptions.version and {version_2} exclude each other"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds must not be negative"
    groups = cluster.get("workerGroupSpecs", [])
    templates = [head, *(group["template"]["spec"] for group in groups)]
    if autoscaling and options.get("version") == "v2":
        for spec in templates:
            if spec.get("restartPolicy", "Never") != "Never":
                yield f"restartPolicy {spec['restartPolicy']} must be Never with the autoscaler v2"


def authentication_mistakes(cluster: Document) -> Iterator[str]:
    """Yield a token where Ray is too old for it."""
    if cluster.get("authOptions", {}).get("mode") != "token":
        return
    numbers = re.match(r"(\d+)\.(\d+)", cluster.get("rayVersion", ""))
    if numbers is None or (int(numbers[1]), int(numbers[2])) < (2, 52):
        yield f"authOptions.mode token needs rayVersion 2.52 or later, not {cluster.get('rayVersion')!r}"
