"""The commands of the containers are run as they stand, without a container, against the local services.

What needs minutes (a whole training, a whole sweep) is run until it works and then asked to end, as by `ray job stop`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from brewclip.data.manifest import open_manifest
from brewclip.data.storage import exists, open_storage
from brewclip.evaluation.folders import latest_evaluation
from brewclip.local import RayHead, free_port
from brewclip.local.processes import program_path, server_environment
from tests.k8s.manifests.check import render
from tests.k8s.manifests.pods import pods_of
from tests.k8s.nodes import environment_of, own_session, wait_for
from tests.k8s.overlays import CHECKOUT, NAMES, filled_in
from tests.training import features

pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """The manifests of the overlay `kind`."""
    return render(filled_in(tmp_path_factory.mktemp("overlays")) / "kind")


@pytest.fixture(scope="module")
def settings(documents):
    """What the ConfigMap holds."""
    (found,) = (one["data"] for one in documents if one["metadata"]["name"] == "settings")
    return found


def job_of(documents: list[dict], name: str) -> dict:
    """Return the spec of a RayJob."""
    (spec,) = (one["spec"] for one in documents if one["kind"] == "RayJob" and one["metadata"]["name"] == name)
    return spec


@pytest.fixture(scope="module")
def cluster(documents, settings, s3, mlflow_server, tmp_path_factory):
    """A Ray head with the variables of the RayJob's head; the names of services are those of the local ones.

    The head runs tasks as well: here it is the only node.
    """
    s3.create_bucket("brewclip")
    cluster_spec = job_of(documents, "train")["rayClusterSpec"]
    variables = environment_of(cluster_spec["headGroupSpec"]["template"]["spec"]["containers"][0], settings)
    places = {"http://minio:9000": s3.endpoint_url, "http://mlflow:5000": mlflow_server.tracking_uri}
    variables = {name: places.get(value, value) for name, value in variables.items()}
    assert variables["BREWCLIP_STORAGE"] == "s3://brewclip"
    keys = {name: value for name, value in s3.environment().items() if name != "AWS_ENDPOINT_URL"}
    keys |= mlflow_server.login.client_environment()  # in the cluster, a network policy is MLflow's boundary
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CHECKOUT)  # the image's working directory
        head = RayHead(tmp_path_factory.mktemp("logs"), num_cpus=2, environment=keys | variables)
        with head:
            yield head


class Submitted:
    """A RayJob's entrypoint on its way, submitted by the submitter's commands."""

    def __init__(self, head: RayHead, name: str, entrypoint: str, folder: Path) -> None:
        self.head, self.name, self.log = head, f"{name}-{os.urandom(3).hex()}", folder / f"{name}.log"
        command = [program_path("ray"), "job", "submit", f"--address={head.dashboard_url}"]
        command += [f"--submission-id={self.name}", "--", *shlex.split(entrypoint)]
        own_session(command, server_environment(head.environment()), self.log, folder)

    def text(self) -> str:
        """Return its output so far."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text())

    def status(self) -> str:
        """Return what Ray says of it."""
        return self.head.request(f"/api/jobs/{self.name}").get("status", "")

    def finish(self) -> str:
        """Return its output when it has succeeded."""
        wait_for(lambda: self.status() in ("SUCCEEDED", "FAILED", "STOPPED"), self.text)
        assert self.status() == "SUCCEEDED", self.text()[-3000:]
        return self.text()

    def run_until(self, text: str) -> None:
        """Return when the text occurs; an end before that is an error."""
        wait_for(lambda: text in self.text() or self.status() in ("FAILED", "SUCCEEDED"), self.text)
        assert text in self.text(), self.text()[-3000:]

    def stop(self) -> None:
        """Ask it to end and wait until it has."""
        self.head.request(f"/api/jobs/{self.name}/stop", method="POST")
        wait_for(lambda: self.status() in ("STOPPED", "FAILED", "SUCCEEDED"), self.text)


def test_every_command_of_the_jobs(documents, cluster, tmp_path, monkeypatch):
    jobs = {name: job_of(documents, name)["entrypoint"] for name in ("data", "extract", "train", "sweep", "evaluate")}
    storage = open_storage("s3://brewclip")

    data = Submitted(cluster, "data", jobs["data"], tmp_path)
    wait_for(lambda: storage.list_names("scenes/"), data.text)
    data.stop()
    small = "--num-train 2 --num-dev 2 --num-test 4 --captions-per-image 1"
    Submitted(cluster, "data-small", re.sub(r"--num-train.*", small, jobs["data"]), tmp_path).finish()

    Submitted(cluster, "extract", jobs["extract"], tmp_path).finish()
    assert len(open_manifest("s3://brewclip/scenes/whisper-base/test")) == 4
    # A batch takes 64 pairs, which Whisper would need minutes for: made-up features of its width instead.
    monkeypatch.setattr(features, "AUDIO_DIM", 512)
    for split, count in (("train", 70), ("dev", 4)):
        for name in storage.list_names(f"scenes/whisper-base/{split}/"):
            storage.delete(name)
        features.write_features("s3://brewclip/scenes/whisper-base", split, count, rounds=1)

    train = Submitted(cluster, "train", jobs["train"], tmp_path)
    train.run_until("step 10/300")
    train.stop()
    assert "was asked to end: writing a checkpoint" in train.text()
    assert exists(storage, "runs/scenes-brewclip-0/checkpoints/latest")

    Submitted(cluster, "evaluate", jobs["evaluate"], tmp_path).finish()
    results = json.loads(latest_evaluation("s3://brewclip", "scenes-test-asr").read("results.json"))
    assert [one["system"] for one in results] == ["scenes-brewclip-0", "zero_shot"]

    sweep = Submitted(cluster, "sweep", jobs["sweep"], tmp_path)
    wait_for(lambda: storage.list_names("runs/scenes-paper") or sweep.status() == "FAILED", sweep.text)
    assert sweep.status() == "RUNNING", sweep.text()[-3000:]
    sweep.stop()


def test_the_probes_answer_without_the_token(documents, cluster):
    (head,) = (pod for pod in pods_of(documents) if pod.owner == "RayCluster/brewclip head")
    container = head.spec["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container[probe]["httpGet"]["path"]
        with urllib.request.urlopen(cluster.dashboard_url + path, timeout=10) as response:
            assert response.status == 200
    (worker,) = (pod for pod in pods_of(documents) if pod.owner == "RayCluster/brewclip workers")
    code = "import ray; ray.init(logging_level='error'); print(ray.nodes()[0]['DashboardAgentListenPort'])"
    environment = server_environment(cluster.environment())
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    url = f"http://127.0.0.1:{int(done.stdout)}{worker.spec['containers'][0]['livenessProbe']['httpGet']['path']}"
    with urllib.request.urlopen(url, timeout=10) as response:
        assert response.status == 200


def test_minio_makes_its_bucket_and_a_user_of_it(documents, settings, tmp_path):
    """The hook's script with a program `mc` that records its words: there is no MinIO here."""
    (pod,) = (pod for pod in pods_of(documents) if pod.owner == "StatefulSet/minio")
    (container,) = pod.spec["containers"]
    mc = tmp_path / "bin" / "mc"
    mc.parent.mkdir()
    mc.write_text(
        '#!/bin/sh\necho "$*" >> "$RECORD"\n'
        'case "$*" in "admin user add local") cat >> "$RECORD" ;; "admin policy create"*) cp "$6" "$RECORD.json" ;;\n'
        '"admin user info"*) cat "$RECORD.user" ;; esac\n'
    )
    mc.chmod(0o700)
    record = tmp_path / "record"
    keys = {"AWS_ACCESS_KEY_ID": "brewclip", "AWS_SECRET_ACCESS_KEY": "user-key"}
    keys |= {"MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": "root-key"}
    path = {"PATH": f"{mc.parent}{os.pathsep}{os.defpath}", "RECORD": str(record)}
    variables = environment_of(container, settings) | keys | path
    words = [word.replace("/tmp", str(tmp_path)) for word in container["lifecycle"]["postStart"]["exec"]["command"]]
    first = ["ready local", "mb --ignore-existing local/brewclip"]
    first += [f"admin policy create local one-bucket {tmp_path}/policy.json"]
    first += ["admin user add local", "brewclip", "user-key", "admin user info local brewclip"]
    for user, attached in (
        ("PolicyName:\n", ["admin policy attach local one-bucket --user brewclip"]),
        ("PolicyName: one-bucket\n", []),
    ):
        record.write_text("")
        (tmp_path / "record.user").write_text(user)
        subprocess.run(words, env=variables, check=True, timeout=30)
        assert record.read_text().splitlines() == first + attached
    policy = json.loads((tmp_path / "record.json").read_text())
    resources = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    assert resources == {"arn:aws:s3:::brewclip", "arn:aws:s3:::brewclip/*"}
    assert not any(action == "s3:*" or "Policy" in action for one in policy["Statement"] for action in one["Action"])


def test_mlflow_answers_by_the_name_of_its_service(documents, settings, s3, tmp_path):
    """The server's command with its database on SQLite: there is no PostgreSQL here."""
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = environment_of(container, settings)
    assert variables["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    port = free_port()
    words = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in container["command"]]
    words = [word.replace("--port=5000", f"--port={port}").replace("0.0.0.0", "127.0.0.1") for word in words]
    variables |= {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db", "AWS_ENDPOINT_URL": s3.endpoint_url}
    variables = server_environment(s3.environment() | variables)
    process = own_session([program_path(words[0]), *words[1:]], variables, tmp_path / "log", tmp_path)
    try:
        wait_for(lambda: status(port, "mlflow:5000") == 200, (tmp_path / "log").read_text)
        path = container["livenessProbe"]["httpGet"]["path"]
        assert status(port, "10.1.2.3:5000", path) == 200, "the kubelet asks by the pod's address"
        assert status(port, "evil.example.com", "/api/2.0/mlflow/experiments/get?experiment_id=0") == 403
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def status(port: int, host: str, path: str = "/api/2.0/mlflow/experiments/get?experiment_id=0") -> int:
    """Return the status of a request that names a host."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_files_that_are_in_the_image(name, tmp_path):
    allowed = (CHECKOUT / ".dockerignore").read_text()
    for pod in pods_of(render(filled_in(tmp_path) / name)):
        for container in pod.spec["containers"]:
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            for word in [*container.get("command", []), *hook]:
                if word.startswith("/app/"):
                    assert (CHECKOUT / word.removeprefix("/app/")).is_file()
                    assert f"!{word.removeprefix('/app/')}" in allowed
