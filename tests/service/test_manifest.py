"""The RayService: as KubeRay defines it, with a serveConfig that the service understands."""

import pytest
import yaml

from brewclip.service.deployments import http_options
from brewclip.service.settings import ServiceSettings, settings_from
from tests.k8s.manifests.check import render_stage
from tests.k8s.manifests.schemas import _closed, schema_mistakes
from tests.k8s.overlays import CHECKOUT, CRDS

pytestmark = pytest.mark.slow
SEARCH = CHECKOUT / "k8s" / "search"


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict]:
    return {document["kind"]: document for document in render_stage(SEARCH)}


def test_every_kind_is_as_its_schema_wants_it(manifests):
    file = CRDS / "ray.io_rayservices.yaml"
    if not file.is_file():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}: the RayService is not checked against its schema")
    crd = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
    schema = {"RayService": _closed(version["schema"]["openAPIV3Schema"], top=True)}
    assert list(schema_mistakes(manifests.values(), schema)) == []
    broken = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "a"}, "spec": {"serveConfig": ""}}
    assert list(schema_mistakes([broken], schema)), "an unknown key is found"


def test_its_configuration_is_one_of_the_service(manifests):
    spec = manifests["RayService"]["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    (application,) = config["applications"]
    settings = settings_from(application["args"])
    assert config["http_options"] == http_options(settings)
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    cpus = float(group["rayStartParams"]["num-cpus"])
    replicas_per_pod = cpus // settings.embedder.cpus_per_replica
    assert group["maxReplicas"] * replicas_per_pod >= settings.embedder.max_replicas
    assert group["minReplicas"] * replicas_per_pod >= settings.embedder.min_replicas


def test_pods_get_requests_after_a_real_query_and_end_after_their_searches(manifests):
    (group,) = manifests["RayService"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8000}
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    seconds = ServiceSettings(index="").embedder.shutdown_seconds + ServiceSettings(index="").limits.request_seconds
    assert pod["terminationGracePeriodSeconds"] >= pause + seconds
    names = {variable["name"] for variable in container["env"]}
    assert "BREWCLIP_SERVICE_TOKEN" in names
