"""Schemas of kinds that neither Kubernetes nor the CRDs at hand define: what the manifests use of them, and no more.

Read in the projects' own CRDs: prometheus-operator 0.91 (PodMonitor, PrometheusRule), Kueue (v1beta2), KubeRay
(RayCronJob, whose `jobTemplate` is the spec of a RayJob). A key that is not listed is refused, so a new one is looked
up before it is used; no API server has seen these kinds.
"""

from typing import Any

Schema = dict[str, Any]

DURATION = {"type": "string", "pattern": r"^(0|(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$"}
STRING: Schema = {"type": "string"}
STRINGS: Schema = {"type": "array", "items": STRING}
MAPPING: Schema = {"type": "object", "additionalProperties": STRING}


def closed(properties: Schema, *required: str) -> Schema:
    """Return the schema of an object with these keys and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


METADATA = closed({"name": STRING, "namespace": STRING, "labels": MAPPING, "annotations": MAPPING}, "name")
SELECTOR = closed({"matchLabels": MAPPING})


def top(properties: Schema, *required: str) -> Schema:
    """Return the schema of a manifest with these keys beside those that all have."""
    common = {"apiVersion": STRING, "kind": STRING, "metadata": METADATA}
    return closed(common | properties, *common, *required)


ENDPOINT = closed({"port": STRING, "path": STRING, "interval": DURATION, "scrapeTimeout": DURATION}, "port")
RULE = closed(
    {"alert": STRING, "expr": STRING, "for": DURATION, "labels": MAPPING, "annotations": MAPPING}, "alert", "expr"
)
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
QUOTA = closed(
    {"name": STRING, "nominalQuota": QUANTITY, "borrowingLimit": QUANTITY, "lendingLimit": QUANTITY},
    "name",
    "nominalQuota",
)
FLAVOR = closed({"name": STRING, "resources": {"type": "array", "items": QUOTA}}, "name", "resources")
GROUP = closed(
    {"coveredResources": STRINGS, "flavors": {"type": "array", "items": FLAVOR}}, "coveredResources", "flavors"
)
QUEUEING = {"enum": ["StrictFIFO", "BestEffortFIFO"]}
PREEMPTION = closed({"withinClusterQueue": {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}})

OTHER_KINDS: dict[tuple[str, str], Schema] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): top(
        {
            "spec": closed(
                {
                    "selector": SELECTOR,
                    "podTargetLabels": STRINGS,
                    "podMetricsEndpoints": {"type": "array", "items": ENDPOINT},
                },
                "selector",
                "podMetricsEndpoints",
            )
        },
        "spec",
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): top(
        {
            "spec": closed(
                {
                    "groups": {
                        "type": "array",
                        "items": closed({"name": STRING, "rules": {"type": "array", "items": RULE}}, "name", "rules"),
                    }
                },
                "groups",
            )
        },
        "spec",
    ),
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): top({"spec": closed({"nodeLabels": MAPPING})}),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): top(
        {
            "spec": closed(
                {
                    "namespaceSelector": SELECTOR,
                    "queueingStrategy": QUEUEING,
                    "preemption": PREEMPTION,
                    "resourceGroups": {"type": "array", "items": GROUP, "maxItems": 16},
                },
                "resourceGroups",
            )
        },
        "spec",
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): top({"spec": closed({"clusterQueue": STRING}, "clusterQueue")}, "spec"),
    ("kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass"): top(
        {"value": {"type": "integer"}, "description": STRING}, "value"
    ),
}


def cron_job_schema(ray_job: Schema) -> Schema:
    """Return the schema of a RayCronJob from that of a RayJob."""
    properties = {"schedule": STRING, "timeZone": STRING, "suspend": {"type": "boolean"}}
    return top({"spec": closed(properties | {"jobTemplate": ray_job["properties"]["spec"]}, "schedule", "jobTemplate")})
