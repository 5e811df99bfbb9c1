"""Every overlay builds, validates and keeps the policies; each of many planted mistakes is found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests.check import mistakes_of, policy_mistakes, render, render_stage, stages_of
from tests.k8s.manifests.pods import containers_of, pods_of, quantity, ray_cluster_of
from tests.k8s.manifests.schemas import RAY_KINDS, load_crds, name_of, schema_mistakes
from tests.k8s.overlays import CHECKOUT, CRDS, NAMES, filled_in, kuberay_crds
from tests.k8s.planted import PLANTED, PLANTED_IN_OTHER_KINDS, PLANTED_IN_RAY
from tests.k8s.planted_for_kuberay import PLANTED_FOR_KUBERAY


@pytest.fixture(scope="module")
def crds():
    """KubeRay's CRDs."""
    found = kuberay_crds()
    if found is None:
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}: RayCluster and RayJob are not checked against their schemas")
    return found


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The manifests of every overlay, filled in."""
    overlays = filled_in(tmp_path_factory.mktemp("overlays"))
    return {name: render(overlays / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_is_in_order(name, rendered):
    assert mistakes_of(rendered[name], None) == []


@pytest.mark.parametrize("name", NAMES)
def test_ray_kinds_are_as_kuberay_defines_them(name, rendered, crds):
    ray = [one for one in rendered[name] if one["apiVersion"].startswith("ray.io/")]
    assert list(schema_mistakes(ray, crds)) == []
    assert {one["kind"] for one in ray} >= {"RayCluster"}


def test_a_stage_holds_what_it_starts_and_nothing_else(rendered):
    jobs = {"extract", "train", "sweep", "evaluate"}
    expected = {
        "gpu": jobs | {"cluster", "network", "nightly", "platform"},
        "kind": (jobs - {"sweep"}) | {"cluster", "data", "platform"},
        "kueue": jobs | {"cluster", "platform", "queue"},
        "gcs-ft": {"cluster", "platform"},
    }
    for name, documents in rendered.items():
        assert set(stages_of(CHECKOUT / "k8s" / "overlays" / name)) == expected[name]
        for one in documents:
            assert one["metadata"].get("namespace", "brewclip") == "brewclip"
            part = one["metadata"]["labels"]["part"]
            assert part in expected[name], one["metadata"]
            if one["kind"] in ("RayJob", "RayCronJob"):
                assert part == one["metadata"]["name"]
            started = {"RayJob", "RayCronJob", "RayCluster"}
            assert (one["kind"] in started) <= (part not in ("platform", "queue"))


def test_one_place_for_the_settings(tmp_path):
    overlays = filled_in(tmp_path)
    settings = overlays.parent / "base" / "settings.env"
    changes = {"image": "r/i:7", "preset": "spoken_coco", "run": "r1", "sweep": "s1", "storage": "s3://b"}
    changes |= {"max-worker-pods": "6", "gpus-per-worker-pod": "4", "min-processes": "4", "max-processes": "24"}
    changes |= {"worker-cpu": "32", "worker-memory": "300Gi", "head-memory": "9Gi", "operator-namespace": "ray-system"}
    changes |= {"storage-class": "fast"}
    for key, value in changes.items():
        settings.write_text(re.sub(f"^{key}=.*$", f"{key}={value}", settings.read_text(), flags=re.MULTILINE))
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, None) == []
    jobs = {one["metadata"]["name"]: one["spec"]["entrypoint"] for one in documents if one["kind"] == "RayJob"}
    assert jobs == {
        "extract": "python jobs/extract.py spoken_coco",
        "train": "python jobs/train.py spoken_coco --run.name r1 --cluster.num-workers 24 --cluster.min-workers 4",
        "sweep": "python jobs/sweep.py paper spoken_coco --run.name s1 --sweep.max-concurrent 24",
        "evaluate": "python jobs/evaluate.py spoken_coco --systems r1 zero_shot",
        "network": "python jobs/network.py --num-workers 24",
    }
    (nightly,) = (one["spec"]["jobTemplate"] for one in documents if one["kind"] == "RayCronJob")
    assert nightly["entrypoint"] == jobs["evaluate"]
    for pod in pods_of(documents):
        (container,) = pod.spec["containers"]
        assert container["image"] == "r/i:7" or container["image"].startswith("postgres:17.6@sha256:")
        if pod.ray == "worker":
            expected = {"cpu": "32", "memory": "300Gi", "ephemeral-storage": "40Gi", "nvidia.com/gpu": "4"}
            assert container["resources"] == {"requests": expected, "limits": expected}
            assert (pod.start_parameters["num-cpus"], pod.start_parameters["num-gpus"]) == ("32", "4")
    volumes = [one["spec"]["volumeClaimTemplates"] for one in documents if one["kind"] == "StatefulSet"]
    assert {claim["spec"]["storageClassName"] for claims in volumes for claim in claims} == {"fast"}
    assert "ray-system" in yaml.dump([one for one in documents if one["kind"] == "NetworkPolicy"])


def test_autoscaling_from_the_smallest_to_the_largest_number(rendered):
    for name, autoscaling, replicas in (
        ("gpu", True, (1, 1, 4)),
        ("kueue", None, (4, 4, 4)),
        ("kind", None, (1, 1, 1)),
    ):
        for one in rendered[name]:
            spec = {"RayJob": one.get("spec", {}).get("rayClusterSpec"), "RayCluster": one.get("spec")}.get(one["kind"])
            if spec is not None:
                (group,) = spec["workerGroupSpecs"]
                assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == replicas
                assert spec.get("enableInTreeAutoscaling") is autoscaling


def test_a_queue_holds_jobs_back_and_redis_keeps_the_head(rendered):
    for one in rendered["kueue"]:
        if one["kind"] == "RayJob":
            assert one["spec"]["suspend"] is True
            assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "brewclip"
    (cluster,) = (one["spec"] for one in rendered["gcs-ft"] if one["kind"] in RAY_KINDS)
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"


def add_components(overlay: Path, stage: str, *names: str) -> None:
    """Add components to a stage of an overlay as the page tells to."""
    path = overlay / stage / "kustomization.yaml"
    text = path.read_text()
    added = ", ".join(f"../../../components/{name}" for name in names)
    path.write_text(text.replace("components: [", f"components: [{added}, ", 1))


def test_components_of_the_platform(tmp_path):
    overlays = filled_in(tmp_path)
    names = ("aws-identity", "minio", "monitoring", "pull-secret", "logs/collector")
    add_components(overlays / "gpu", "platform", *names)
    settings = overlays.parent / "base" / "settings.env"
    settings.write_text(settings.read_text().replace("namespace=monitoring", "namespace=observability"))
    documents = render_stage(overlays / "gpu" / "platform")
    assert [line.partition(" is still")[0] for line in mistakes_of(documents, None) if "still" in line] == [
        "ServiceAccount/brewclip: metadata.annotations.eks.amazonaws.com/role-arn"
    ]
    identity = overlays.parent / "components" / "aws-identity" / "kustomization.yaml"
    identity.write_text(identity.read_text().replace("CHANGE-ME", "123456789012"))
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, None) == []
    found = {name_of(one) for one in documents}
    assert {"StatefulSet/minio", "PodMonitor/ray", "PrometheusRule/brewclip", "ConfigMap/log-collector"} < found
    (policy,) = (one for one in documents if name_of(one) == "NetworkPolicy/metrics")
    assert "observability" in yaml.dump(policy)


def test_components_of_every_stage(tmp_path, crds):
    overlays = filled_in(tmp_path)
    settings = overlays.parent / "base" / "settings.env"
    settings.write_text(settings.read_text() + "log-bucket=our-logs\n")
    add_components(overlays / "gpu", "platform", "logs/collector")
    common = overlays / "gpu" / "common" / "kustomization.yaml"
    added = ("logs", "workers-first", "gang", "fast-network-efa", "fast-network-rdma")
    names = ", ".join(f"../../../components/{name}" for name in added)
    common.write_text(common.read_text().replace("components/gpu]", f"components/gpu, {names}]"))
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, crds) == []
    (job,) = (one for one in documents if name_of(one) == "RayJob/train")
    assert job["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["maxReplicas"], "workers that nobody adds"
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["vpc.amazonaws.com/efa"] == "4"


def test_images_by_digest(tmp_path):
    overlays = filled_in(tmp_path)
    ours, theirs = (f"sha256:{digit * 64}" for digit in "ab")
    settings = overlays.parent / "base" / "settings.env"
    settings.write_text(re.sub("^image=.*$", f"image=r/i@{ours}", settings.read_text(), flags=re.MULTILINE))
    path = overlays / "gpu" / "platform" / "kustomization.yaml"
    path.write_text(f"{path.read_text()}images:\n  - {{name: postgres, digest: '{theirs}'}}\n")
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, None) == []
    images = {container["image"] for pod in pods_of(documents) for container in pod.spec["containers"]}
    assert images == {f"r/i@{ours}"} | {image for image in images if image.startswith("postgres")}
    assert f"postgres:17.6@{theirs}" in images or f"postgres@{theirs}" in images


def test_images_of_others_are_digests(rendered):
    for name, documents in rendered.items():
        for pod in pods_of(documents):
            for container in containers_of(pod.spec):
                image = container["image"]
                assert "@sha256:" in image or "brewclip:" in image, (name, pod.owner, image)


def test_a_token_of_kubernetes_is_in_the_autoscaler_alone(rendered):
    for name, documents in rendered.items():
        for one in documents:
            cluster = ray_cluster_of(one) or {}
            mounts = cluster.get("autoscalerOptions", {}).get("volumeMounts", [])
            has_token = "/var/run/secrets/kubernetes.io/serviceaccount" in {mount["mountPath"] for mount in mounts}
            assert has_token is (name in ("gpu", "gcs-ft") and bool(cluster))


def test_the_root_key_of_minio_is_in_its_own_pod_alone(rendered):
    users = {one["metadata"]["name"] for one in rendered["kind"] if "minio-root" in str(one)}
    assert users == {"minio"}


Mistake = tuple[str, str, str, str]


def place_of(file: str, replacement: str) -> tuple[str, list[str]]:
    """Return the overlay and the stages that show a mistake of a file below k8s/."""
    first, second, *rest = file.split("/")
    if first == "overlays":
        stage = {"common": "cluster" if second == "gcs-ft" else "train", "overlays": ""}.get(rest[0], rest[0])
        return second, ["platform", stage] if second == "kind" else [stage]
    if first == "stages":
        return "gpu", ["train" if second == "every-job" else second]
    if file == "base/settings.env":
        return "gpu", ["platform", "train"]
    if first == "platform" or second in ("minio", "monitoring"):
        return "kind" if "minio" in file + replacement else "gpu", ["platform"]
    return ("kind" if "CREDENTIAL" in replacement else "gpu"), ["train" if second == "workers-first" else "cluster"]


def plant(mistake: Mistake, folder: Path) -> tuple[str, list[dict], list[str]]:
    """Plant a mistake into a copy; return the overlay, the changed documents, and the line of a failed build."""
    overlays = filled_in(folder)
    file, pattern, replacement, _ = mistake
    path = overlays.parent / file
    text, count = re.subn(pattern, lambda _: replacement, path.read_text())
    assert count, f"{pattern!r} does not occur in {file}"
    path.write_text(text)
    overlay, stages = place_of(file, replacement)
    if "monitoring" in file:
        add_components(overlays / overlay, "platform", "monitoring")
    if "workers-first" in file:
        common = overlays / overlay / "common" / "kustomization.yaml"
        common.write_text(
            common.read_text().replace("components/gpu]", "components/gpu, ../../../components/workers-first]")
        )
    try:
        return overlay, [one for stage in stages for one in render_stage(overlays / overlay / stage)], []
    except ValueError as error:  # kubectl itself refuses it
        return overlay, [], [str(error)]


def with_the_rest(changed: list[dict], documents: list[dict]) -> list[dict]:
    """Return the documents of an overlay, some of them changed."""
    names = {name_of(one) for one in changed}
    return changed + [one for one in documents if name_of(one) not in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name, tmp_path, rendered):
    overlay, changed, lines = plant(PLANTED[name], tmp_path)
    lines = lines or mistakes_of(with_the_rest(changed, rendered[overlay]), None)
    assert any(PLANTED[name][3] in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED_FOR_KUBERAY)
def test_a_planted_mistake_that_only_kuberay_finds_is_found(name, tmp_path, crds):
    _, changed, lines = plant(PLANTED_FOR_KUBERAY[name], tmp_path)
    ray = [one for one in changed if one["apiVersion"].startswith("ray.io/")]
    assert ray
    assert list(schema_mistakes(ray, crds)) == [], "a schema finds it too"
    lines = [line for line in policy_mistakes(ray) if "KubeRay: " in line]
    assert any(PLANTED_FOR_KUBERAY[name][3] in line for line in lines), lines


@pytest.mark.parametrize("name", [*PLANTED_IN_RAY, *PLANTED_IN_OTHER_KINDS])
def test_a_planted_mistake_against_a_schema_is_found(name, tmp_path, crds):
    mistake = (PLANTED_IN_RAY | PLANTED_IN_OTHER_KINDS)[name]
    _, changed, lines = plant(mistake, tmp_path)
    lines = lines or list(schema_mistakes(changed, crds))
    assert any(mistake[3] in line for line in lines), lines


@pytest.mark.slow
def test_the_command_says_what_is_wrong_and_what_was_not_checked():
    done = subprocess.run(
        [sys.executable, "-m", "tests.k8s.manifests.check", "kind", "gpu"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "kind: in order" in done.stdout
    assert "data.storage is still 's3://CHANGE-ME'" in done.stdout, "the checkout names nobody's bucket"
    assert "not checked: RayCluster and RayJob against KubeRay's schemas" in done.stdout


def test_crds_from_a_cluster_are_a_list(tmp_path):
    spec = {"type": "object", "properties": {"size": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"apiVersion": {}, "kind": {}, "spec": spec}}
    versions = [{"name": "v1alpha1"}, {"name": "v1", "schema": {"openAPIV3Schema": schema}}]
    items = [
        {"kind": "CustomResourceDefinition", "spec": {"names": {"kind": kind}, "versions": versions}}
        for kind in RAY_KINDS
    ]
    (tmp_path / "crds.yaml").write_text(yaml.dump({"apiVersion": "v1", "kind": "List", "items": items}))
    crds = load_crds(tmp_path / "crds.yaml")
    one = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {"size": 1}}
    assert list(schema_mistakes([one], crds)) == []
    (line,) = schema_mistakes([one | {"spec": {"siez": 1}}], crds)
    assert line.startswith("RayJob/a: spec: Additional properties are not allowed ('siez' was unexpected)")
    (tmp_path / "empty.yaml").write_text("kind: List\nitems: []\n")
    with pytest.raises(ValueError, match="holds no CRD of RayCluster, RayJob"):
        load_crds(tmp_path / "empty.yaml")


def test_quantities():
    assert [quantity(text) for text in ("500m", "2", "1Gi", "100000000", 3)] == [0.5, 2, 2**30, 1e8, 3]
    with pytest.raises(ValueError, match="is no quantity"):
        quantity("2 GB")
