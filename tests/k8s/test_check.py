"""Every overlay builds, validates and keeps the policies; each of many planted mistakes is found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests.check import mistakes_of, render
from tests.k8s.manifests.pods import pods_of, quantity
from tests.k8s.manifests.schemas import RAY_KINDS, load_crds, schema_mistakes
from tests.k8s.overlays import CHECKOUT, CRDS, NAMES, filled_in, kuberay_crds
from tests.k8s.planted import PLANTED, PLANTED_IN_RAY


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
    assert mistakes_of(rendered[name], crds) == []
    assert {one["kind"] for one in rendered[name] if one["apiVersion"] == "ray.io/v1"} == set(RAY_KINDS)


def test_every_stage_is_a_job_and_has_its_part(rendered):
    for name, documents in rendered.items():
        jobs = {one["metadata"]["name"] for one in documents if one["kind"] == "RayJob"}
        assert jobs - {"data"} == {"extract", "train", "sweep", "evaluate"}, name
        for one in documents:
            assert one["metadata"].get("namespace", "brewclip") == "brewclip"
            assert one["metadata"]["labels"]["part"] in {"platform", "cluster", *jobs}, one["metadata"]
            if one["kind"] == "RayJob":  # `kubectl apply -l part=train` applies this one and its disruption budget
                assert one["metadata"]["labels"]["part"] == one["metadata"]["name"]


def test_one_place_for_the_settings(tmp_path):
    overlays = filled_in(tmp_path)
    settings = overlays.parent / "base" / "settings.env"
    changes = {
        "image": "r/i:7",
        "preset": "spoken_coco",
        "run": "r1",
        "sweep": "s1",
        "max-workers": "6",
        "storage": "s3://b",
    }
    changes |= {"worker-cpu": "8", "worker-memory": "30Gi", "head-memory": "9Gi", "operator-namespace": "ray-system"}
    for key, value in changes.items():
        settings.write_text(re.sub(f"^{key}=.*$", f"{key}={value}", settings.read_text(), flags=re.MULTILINE))
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, None) == []
    jobs = {one["metadata"]["name"]: one["spec"]["entrypoint"] for one in documents if one["kind"] == "RayJob"}
    assert jobs == {
        "extract": "python jobs/extract.py spoken_coco",
        "train": "python jobs/train.py spoken_coco --run.name r1 --cluster.num-workers 6 --cluster.min-workers 1",
        "sweep": "python jobs/sweep.py paper spoken_coco --run.name s1 --sweep.max-concurrent 6",
        "evaluate": "python jobs/evaluate.py spoken_coco --systems r1 zero_shot",
    }
    for pod in pods_of(documents):
        (container,) = pod.spec["containers"]
        assert container["image"] in ("r/i:7", "postgres:17.6")
        if pod.ray == "worker":
            expected = {"cpu": "8", "memory": "30Gi", "ephemeral-storage": "40Gi", "nvidia.com/gpu": "1"}
            assert container["resources"] == {"requests": expected, "limits": expected}
            assert pod.start_parameters["num-cpus"] == "8"
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
    clusters = [
        one["spec"].get("rayClusterSpec", one["spec"]) for one in rendered["gcs-ft"] if one["kind"] in RAY_KINDS
    ]
    assert len(clusters) == 5
    assert all(one["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379" for one in clusters)


def test_components_can_be_added_to_an_overlay(tmp_path):
    overlays = filled_in(tmp_path)
    path = overlays / "gpu" / "kustomization.yaml"
    names = "[../../components/aws-identity, ../../components/minio]"
    path.write_text(path.read_text().replace("components: []", f"components: {names}"))
    identity = overlays.parent / "components" / "aws-identity" / "kustomization.yaml"
    documents = render(overlays / "gpu")
    assert [line.partition(" is still")[0] for line in mistakes_of(documents, None)] == [
        "ServiceAccount/brewclip: metadata.annotations.eks.amazonaws.com/role-arn"
    ]
    identity.write_text(identity.read_text().replace("CHANGE-ME", "123456789012"))
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, None) == []
    assert "minio" in {one["metadata"]["name"] for one in documents}


def test_images_by_digest(tmp_path):
    overlays = filled_in(tmp_path)
    ours, theirs = (f"sha256:{digit * 64}" for digit in "ab")
    settings = overlays.parent / "base" / "settings.env"
    settings.write_text(re.sub("^image=.*$", f"image=r/i@{ours}", settings.read_text(), flags=re.MULTILINE))
    path = overlays / "gpu" / "kustomization.yaml"
    path.write_text(f"{path.read_text()}images:\n  - {{name: postgres, digest: '{theirs}'}}\n")
    documents = render(overlays / "gpu")
    assert mistakes_of(documents, None) == []
    images = {container["image"] for pod in pods_of(documents) for container in pod.spec["containers"]}
    assert images == {f"r/i@{ours}", f"postgres@{theirs}"}


def test_a_token_of_kubernetes_is_in_the_autoscaler_alone(rendered):
    for name, documents in rendered.items():
        for one in documents:
            cluster = {"RayCluster": one.get("spec"), "RayJob": one.get("spec", {}).get("rayClusterSpec")}.get(
                one["kind"]
            )
            mounts = (cluster or {}).get("autoscalerOptions", {}).get("volumeMounts", [])
            has_token = "/var/run/secrets/kubernetes.io/serviceaccount" in {mount["mountPath"] for mount in mounts}
            assert has_token is (name in ("gpu", "gcs-ft") and cluster is not None)


def test_the_root_key_of_minio_is_in_its_own_pod_alone(rendered):
    users = {one["metadata"]["name"] for one in rendered["kind"] if "minio-root" in yaml.dump(one)}
    assert users == {"minio"}


def lines_about(mistake: tuple[str, str, str, str], overlays: Path, crds: dict | None) -> list[str]:
    """Plant a mistake into the copy and return what the checker says of an overlay that has it."""
    file, pattern, replacement, _ = mistake
    path = overlays.parent / file
    text, count = re.subn(pattern, lambda _: replacement, path.read_text())
    assert count, f"{pattern!r} does not occur in {file}"
    path.write_text(text)
    usual = "kind" if "minio" in file + replacement else "gpu"  # `gpu` has no MinIO
    overlay = file.split("/")[1] if file.startswith("overlays/") else usual
    try:
        return mistakes_of(render(overlays / overlay), crds)
    except ValueError as error:  # kubectl itself refuses it
        return [str(error)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name, tmp_path):
    lines = lines_about(PLANTED[name], filled_in(tmp_path), None)
    assert any(PLANTED[name][3] in line for line in lines), lines


@pytest.mark.parametrize("name", PLANTED_IN_RAY)
def test_a_planted_mistake_in_a_ray_kind_is_found(name, tmp_path, crds):
    lines = lines_about(PLANTED_IN_RAY[name], filled_in(tmp_path), crds)
    assert any(PLANTED_IN_RAY[name][3] in line for line in lines), lines


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
