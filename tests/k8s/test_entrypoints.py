"""The commands of the containers are run as they stand, without a container, against the local services.

What needs minutes (a whole training, a whole sweep) is run until it works and then asked to end, as by `ray job stop`.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from brewclip.data.manifest import open_manifest
from brewclip.data.storage import exists, open_storage
from brewclip.evaluation.folders import latest_evaluation
from brewclip.local import RayHead, free_port
from brewclip.local.processes import program_path, server_environment
from tests.k8s.manifests.check import render
from tests.k8s.manifests.pods import pods_of
from tests.k8s.nodes import ON_REQUEST, environment_of, kill_session, own_session, wait_for
from tests.k8s.overlays import CHECKOUT, NAMES, filled_in
from tests.training import features

pytestmark = [pytest.mark.services, pytest.mark.timeout(1200), ON_REQUEST]

MONITORING = CHECKOUT / "k8s" / "components" / "monitoring"


@pytest.fixture(scope="module")
def overlays(tmp_path_factory):
    """The manifests of every overlay."""
    folder = filled_in(tmp_path_factory.mktemp("overlays"))
    return {name: render(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def documents(overlays):
    """The manifests of the overlay `kind`."""
    return overlays["kind"]


@pytest.fixture(scope="module")
def settings(documents):
    """What the ConfigMap holds."""
    (found,) = (one["data"] for one in documents if one["metadata"]["name"] == "settings")
    return found


@pytest.fixture(scope="module")
def mlflow(documents, settings, s3, tmp_path_factory):
    """The port of MLflow's command with its database on SQLite: there is no PostgreSQL here."""
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    s3.create_bucket("brewclip")
    variables = environment_of(container, settings)
    assert variables["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    words = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in container["command"]]
    words = [word.replace("5000", str(port)).replace("0.0.0.0", "127.0.0.1") for word in words]
    variables |= {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db", "AWS_ENDPOINT_URL": s3.endpoint_url}
    variables = server_environment(s3.environment() | variables)
    process = own_session([program_path(words[0]), *words[1:]], variables, folder / "log", folder)
    try:
        wait_for(lambda: status(port, f"mlflow:{port}") == 200, (folder / "log").read_text)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def job_of(documents: list[dict], name: str) -> dict:
    """Return the spec of a RayJob."""
    (spec,) = (one["spec"] for one in documents if one["kind"] == "RayJob" and one["metadata"]["name"] == name)
    return spec


@pytest.fixture(scope="module")
def cluster(documents, settings, s3, mlflow, tmp_path_factory):
    """A Ray head with the variables of the RayJob's head; the names of services are those of the local ones.

    The head runs tasks as well: here it is the only node.
    """
    cluster_spec = job_of(documents, "train")["rayClusterSpec"]
    variables = environment_of(cluster_spec["headGroupSpec"]["template"]["spec"]["containers"][0], settings)
    places = {"http://minio:9000": s3.endpoint_url, "http://mlflow:5000": f"http://localhost:{mlflow}"}
    variables = {name: places.get(value, value) for name, value in variables.items()}
    assert variables["BREWCLIP_STORAGE"] == "s3://brewclip"
    keys = {name: value for name, value in s3.environment().items() if name != "AWS_ENDPOINT_URL"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CHECKOUT)  # the image's working directory
        head = RayHead(tmp_path_factory.mktemp("logs"), num_cpus=2, environment=keys | variables)
        with head:
            yield head


def port_of(head: RayHead, name: str) -> int:
    """Return a port of the head's node, from the file that Ray writes for its own processes."""
    words: list[str] = []
    for process in head.process.descendants():
        with contextlib.suppress(psutil.Error):
            words += [word for word in process.cmdline() if word.startswith("--temp-dir=")]
    session = Path(words[0].partition("=")[2]) / "session_latest"
    (file,) = session.glob(f"{name}_port_*")
    return int(file.read_text())


class Submitted:
    """A RayJob's entrypoint on its way, submitted to the job server as `ray job submit` does."""

    def __init__(self, head: RayHead, name: str, entrypoint: str) -> None:
        self.head, self.name = head, f"{name}-{os.urandom(3).hex()}"
        body = json.dumps({"entrypoint": entrypoint, "submission_id": self.name}).encode()
        headers = head.request_headers() | {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{head.dashboard_url}/api/jobs/", body, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["submission_id"] == self.name

    def text(self) -> str:
        """Return its output so far."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.head.request(f"/api/jobs/{self.name}/logs").get("logs", ""))

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


def follow(head: RayHead, job: Submitted, log: Path) -> subprocess.Popen:
    """Start what a submitter does once its job is there."""
    command = [program_path("ray"), "job", "logs", f"--address={head.dashboard_url}", "--follow", job.name]
    return own_session(command, server_environment(head.environment()), log, log.parent)


def test_every_command_of_the_jobs(overlays, documents, cluster, tmp_path, monkeypatch):
    jobs = {name: job_of(documents, name)["entrypoint"] for name in ("data", "extract", "train", "evaluate")}
    sweep = job_of(overlays["gpu"], "sweep")["entrypoint"]
    jobs["sweep"] = sweep.replace("flickr8k", "scenes").replace("max-concurrent 4", "max-concurrent 1")
    storage = open_storage("s3://brewclip")

    small = "--num-train 1 --num-dev 1 --num-test 2 --captions-per-image 1"
    Submitted(cluster, "data", re.sub(r"--num-train.*", small, jobs["data"])).finish()
    Submitted(cluster, "extract", jobs["extract"]).finish()
    assert len(open_manifest("s3://brewclip/scenes/whisper-base/test")) == 2
    # A batch takes 64 pairs, which Whisper would need minutes for: made-up features of its width instead.
    monkeypatch.setattr(features, "AUDIO_DIM", 512)
    for split, count in (("train", 70), ("dev", 4)):
        for name in storage.list_names(f"scenes/whisper-base/{split}/"):
            storage.delete(name)
        features.write_features("s3://brewclip/scenes/whisper-base", split, count, rounds=1)

    train = Submitted(cluster, "train", jobs["train"])
    submitter = follow(cluster, train, tmp_path / "first.log")
    train.run_until("pairs, ")
    kill_session(submitter)  # a submitter that is lost: the job does not notice, and the next one follows it
    train.run_until("step 10/300")
    assert train.status() == "RUNNING"
    submitter = follow(cluster, train, tmp_path / "second.log")
    wait_for(lambda: "step 10/300" in (tmp_path / "second.log").read_text(), train.text)
    asked_for = metrics_of_monitoring()
    wait_for(lambda: asked_for <= metrics_of(cluster), lambda: str(asked_for - metrics_of(cluster)), 90)
    train.stop()
    kill_session(submitter)
    assert "was asked to end: writing a checkpoint" in train.text()
    assert exists(storage, "runs/scenes-brewclip-0/checkpoints/latest")

    Submitted(cluster, "evaluate", jobs["evaluate"]).finish()
    results = json.loads(latest_evaluation("s3://brewclip", "scenes-test-asr").read("results.json"))
    assert [one["system"] for one in results] == ["scenes-brewclip-0", "zero_shot"]

    small = " --use-gpu False --megabytes 1 --repeats 3"
    network = job_of(overlays["gpu"], "network")["entrypoint"].replace("num-workers 4", "num-workers 2") + small
    assert re.search(r"1\.0 MB in +[\d.]+ ms: +[\d.]+ GB/s", Submitted(cluster, "network", network).finish())

    sweep = Submitted(cluster, "sweep", jobs["sweep"])
    wait_for(lambda: storage.list_names("runs/scenes-paper") or sweep.status() == "FAILED", sweep.text)
    assert sweep.status() == "RUNNING", sweep.text()[-3000:]
    sweep.stop()


def metrics_of_monitoring() -> set[str]:
    """Return the metrics that the alerts and the dashboard ask for, without those of GPUs."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    dashboard = json.loads((MONITORING / "brewclip.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    queries += [rule["expr"] for rule in group["rules"]]
    found = {name for query in queries for name in re.findall(r"\bray_\w+", query)}
    found -= {"ray_io_cluster", "ray_train_run_name"}  # labels
    gpus = {name for name in found if "_gpus_" in name or "_gram_" in name}  # exported where there is a GPU
    assert {name.removeprefix("ray_") for name in gpus} <= METRICS_GAUGES.keys()
    assert len(found) > 10
    return found - gpus


def metrics_of(head: RayHead) -> set[str]:
    """Return the names of the metrics that the node exports, without a token."""
    url = f"http://127.0.0.1:{port_of(head, 'metrics_export')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        return set(re.findall(r"^(\w+)[{ ]", response.read().decode(), re.MULTILINE))


def test_the_probes_answer_without_the_token(documents, cluster):
    (head,) = (pod for pod in pods_of(documents) if pod.owner == "RayCluster/brewclip head")
    container = head.spec["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container[probe]["httpGet"]["path"]
        with urllib.request.urlopen(cluster.dashboard_url + path, timeout=10) as response:
            assert response.status == 200
    (worker,) = (pod for pod in pods_of(documents) if pod.owner == "RayCluster/brewclip workers")
    path = worker.spec["containers"][0]["livenessProbe"]["httpGet"]["path"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port_of(cluster, 'dashboard_agent_listen')}{path}") as response:
        assert response.status == 200


def test_a_backup_is_stored_and_old_ones_go(overlays, s3, bucket, tmp_path):
    (pod,) = (pod for pod in pods_of(overlays["gpu"]) if pod.owner == "CronJob/backup")
    dump, upload = pod.spec["initContainers"][0], pod.spec["containers"][0]
    assert f"--file={upload['command'][-1]}" in dump["command"]
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "mlflow.dump").write_bytes(b"PGDMP")
    for day in range(20):
        open_storage(f"{bucket}/backups").write(f"mlflow-2020-01-{day + 10}T00-00-00.dump", b"old")
    words = [word.replace("/app", str(CHECKOUT)).replace("/backup", f"{tmp_path}/backup") for word in upload["command"]]
    variables = server_environment(s3.environment() | {"BREWCLIP_STORAGE": bucket})
    done = subprocess.run(
        [program_path(words[0]), *words[1:]], env=variables, capture_output=True, text=True, cwd=CHECKOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    names = sorted(open_storage(f"{bucket}/backups").list_names("mlflow-"))
    assert len(names) == 14
    assert open_storage(f"{bucket}/backups").read(names[-1]) == b"PGDMP"


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


def test_mlflow_answers_by_the_name_of_its_service(documents, mlflow):
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    path = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["path"]
    assert status(mlflow, f"mlflow:{mlflow}") == 200
    assert status(mlflow, "10.1.2.3:5000", path) == 200, "the kubelet asks by the pod's address"
    assert status(mlflow, "evil.example.com", "/api/2.0/mlflow/experiments/get?experiment_id=0") == 403


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


def test_commands_name_files_that_are_in_the_image(overlays):
    allowed = (CHECKOUT / ".dockerignore").read_text()
    words = {
        word
        for documents in overlays.values()
        for pod in pods_of(documents)
        for container in pod.spec["containers"]
        for word in container.get("command", [])
        if word.startswith("/app/")
    }
    assert words == {"/app/k8s/store_backup.py"}
    for word in words:
        assert (CHECKOUT / word.removeprefix("/app/")).is_file()
        assert f"!{word.removeprefix('/app/')}" in allowed
