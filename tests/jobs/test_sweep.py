"""A sweep as a user runs it: one trial cannot work, the program is killed, and it ends with all that was promised.

Real Ray, S3, MLflow and, where it is installed, Chromium. The sweep is made once.
"""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request

import mlflow
import pytest
import torch

from brewclip.checkpoints.checkpoint import load_checkpoint, open_checkpoint
from brewclip.config import preset
from brewclip.data.storage import exists, open_storage
from brewclip.local.processes import open_loopback_url
from tests.training.features import write_features

CHECKOUT = Path(__file__).parents[2]
METRIC = "dev/speech_to_image/R1"
pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]

# Drawn at random with seed 28: (1e-6, 1000), which does not go together, then (1e-6, 2) and (3e-3, 2).
SPACE = 'SPACE = {"optim.peak_lr": [3e-3, 1e-6], "optim.warmup_steps": [2, 1000]}\n'
FLAGS = (
    "--sweep.num-trials 3 --sweep.search random --sweep.max-concurrent 1 --optim.total-steps 120 "
    "--run.eval-every-steps 24 --run.checkpoint-every-steps 12 --run.log-every-steps 24 --run.global-batch-size 12 "
    "--optim.warmup-steps 2 --run.seed 28 --cluster.num-workers 1 --model.ff-dim 64"
)


@pytest.fixture(scope="module")
def storage(s3):
    url = s3.create_bucket("sweep")
    write_features(f"{url}/scenes/whisper-base", "train", 30)
    write_features(f"{url}/scenes/whisper-base", "dev", 8)
    return url


class SweepJob:
    """`python jobs/sweep.py` as a process of its own."""

    def __init__(
        self, space: Path, storage: str, log: Path, *flags: str, seconds_between_checks: float | None = None
    ) -> None:
        command = [sys.executable, "jobs/sweep.py", str(space), "scenes", *shlex.split(FLAGS), *flags]
        self.log = log
        environment = os.environ | {"BREWCLIP_STORAGE": storage}
        if seconds_between_checks is not None:
            environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(seconds_between_checks)
        with open(log, "a") as output:
            self.process = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 600.0) -> int:
        return self.process.wait(seconds)

    def wait_for_text(self, text: str, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(text, self.log.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)


@pytest.fixture(scope="module")
def swept(storage, ray_head, mlflow_server, tmp_path_factory):
    """The output of a sweep whose program was killed while its second trial ran."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "space.py").write_text(SPACE)
    # Ray Train's controller that sees its workers die just before it is ended starts others, whose placement group
    # nobody removes then (Ray 2.60); it looks seldom here, so that it does not see them.
    job = SweepJob(folder / "space.py", storage, folder / "log", "--run.name", "swept", seconds_between_checks=3.0)
    job.wait_for_text(r"trial swept-00001 at step 24,")
    records = open_storage(f"{storage}/sweeps/swept")
    # Copied there in the background.
    while not exists(records, "trials.jsonl") or b'"step"' not in records.read("trials.jsonl"):
        time.sleep(0.1)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.wait()
    job = SweepJob(folder / "space.py", storage, folder / "log", "--run.name", "swept")
    assert job.wait() == 0, job.log.read_text()[-3000:]
    return job.log.read_text()


@pytest.fixture(scope="module")
def records(swept, storage, mlflow_server):
    """The sweep's run in MLflow, and those of its trials by name."""
    client = mlflow.MlflowClient(mlflow_server.tracking_uri)
    experiment = client.get_experiment_by_name("brewclip").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`brewclip.run_url` = '{storage}/sweeps/swept'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len({run.info.run_name for run in children}) == len(children), "a trial has one run, restarted or not"
    return client, parent, {run.info.run_name: run for run in children}


def test_a_killed_sweep_goes_on_with_what_it_had(swept, storage):
    assert "sweep swept: resumed, trials that have reported: 1" in swept
    assert "trial swept-00000 failed: --optim.warmup-steps 1000 must be 0..120, the total steps" in swept
    assert swept.count("trial swept-00000 starts") == 1, "a trial that has failed is not repeated"
    started = [int(step) for step in re.findall(r"train swept-00001: step (\d+) of 120", swept)]
    assert started[0] == 0
    assert started[-1] >= 24, "the interrupted trial went on from its checkpoint"
    rows = json.loads(open_storage(f"{storage}/sweeps/swept").read("trials.json"))
    assert {row["name"]: row["outcome"] == "failed" for row in rows} == {
        "swept-00000": True, "swept-00001": False, "swept-00002": False,
    }  # fmt: skip
    assert rows[0]["best"] == max(row["best"] for row in rows if row["best"] is not None)


def test_nothing_of_the_trials_is_left_on_the_cluster(swept):
    code = (
        "import ray; ray.init(logging_level='error'); from ray.util import placement_group_table as table; "
        "print(sum(one['state'] != 'REMOVED' for one in table().values()), ray.available_resources().get('CPU'))"
    )
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        if done.stdout.strip() == "0 4.0":  # all CPUs of the head are free
            break
        assert time.monotonic() < deadline, done.stdout


def test_mlflow_has_the_sweep_with_its_trials(records, storage):
    client, parent, children = records
    assert set(children) == {"swept-00000", "swept-00001", "swept-00002"}
    failed = children["swept-00000"]
    assert failed.info.status == "FAILED"
    assert failed.data.tags["brewclip.problem"].startswith("--optim.warmup-steps 1000 must be 0..120")
    best = children[parent.data.tags["brewclip.best_trial"]]
    assert best.info.status == "FINISHED"
    assert best.data.params["optim.peak_lr"] == parent.data.params["best.optim.peak_lr"]
    assert parent.data.metrics[METRIC] == max(
        point.value for point in client.get_metric_history(best.info.run_id, METRIC)
    )
    steps = [point.step for point in client.get_metric_history(best.info.run_id, "train/loss")]
    assert sorted(set(steps)) == list(range(24, 121, 24))
    assert {"brewclip.git_commit", "brewclip.command", "brewclip.sha256.manifest"} < set(best.data.tags)
    assert "jobs/sweep.py" in best.data.tags["brewclip.command"], "what the user typed, not what Ray started"
    assert {item.path for item in client.list_artifacts(best.info.run_id, "checkpoint")} == {
        "checkpoint/model.safetensors", "checkpoint/checkpoint.json", "checkpoint/README.md",
    }  # fmt: skip
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    tables, images = {"trials.csv", "trials.json", "trials.md"}, {"parallel_coordinates.png", "early_stopping.png"}
    assert tables | images | {"recall_by_parameter.png", "origin"} <= names
    assert "system/system_memory_usage_percentage" in parent.data.metrics


def test_the_best_checkpoint_is_opened_and_trained_on_by_name(records, storage, mlflow_server):
    from dataclasses import replace

    from brewclip.evaluation.systems import describe_system
    from brewclip.training.launch import prepare
    from brewclip.training.worker import build_worker

    uri, name = mlflow_server.tracking_uri, "models:/brewclip@best"
    best = records[1].data.tags["brewclip.best_trial"]
    checkpoint, own = open_checkpoint(name, uri), load_checkpoint(open_storage(f"{storage}/runs/{best}"), "best")
    assert checkpoint.facts == own.facts
    scenes = preset("scenes")
    config = replace(scenes, storage=storage, tracking=replace(scenes.tracking, uri=uri))
    assert describe_system(config, name).step == own.facts.step
    config = replace(
        config,
        model=replace(config.model, ff_dim=64),
        run=replace(config.run, name="goes-on", init_from=name, global_batch_size=12),
        cluster=replace(config.cluster, num_workers=1),
    )
    prepare(config)
    with pytest.raises(ValueError, match=r"is a model with --model\.ff-dim 64, here it is 1024"):
        prepare(replace(config, model=scenes.model))
    worker = build_worker(replace(config, tracking=scenes.tracking))
    worker.close()
    assert worker.state.step == 0
    for key, tensor in worker.parts.model.trained_state().items():
        assert torch.equal(tensor, own.model[key]), key


def test_the_best_trial_repeated_from_its_command_gives_the_same_recall(records, storage, mlflow_server):
    _, parent, children = records
    best = children[parent.data.tags["brewclip.best_trial"]]
    words = shlex.split(best.data.tags["brewclip.repeat"])
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=CHECKOUT,
        env=os.environ | {"BREWCLIP_STORAGE": storage},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, again = (
        load_checkpoint(open_storage(f"{storage}/runs/{best.info.run_name}{suffix}"), "best")
        for suffix in ("", "-again")
    )
    assert again.facts.best == first.facts.best
    for name, tensor in first.model.items():
        assert torch.equal(again.model[name], tensor), name


def test_other_settings_under_the_same_name_are_refused(swept, storage, ray_head, mlflow_server, tmp_path):
    (tmp_path / "space.py").write_text(SPACE)
    job = SweepJob(tmp_path / "space.py", storage, tmp_path / "log", "--run.name", "swept", "--run.seed", "7")
    assert job.wait() == 2
    assert "run 'swept' was started with --run.seed 28, now it is 7" in job.log.read_text()


def test_a_sweep_whose_trials_all_fail_says_why(storage, ray_head, mlflow_server, tmp_path):
    (tmp_path / "space.py").write_text('SPACE = {"optim.warmup_steps": [1000]}\n')
    job = SweepJob(
        tmp_path / "space.py", storage, tmp_path / "log", "--run.name", "hopeless", "--sweep.num-trials", "1"
    )
    assert job.wait() == 1, job.log.read_text()[-3000:]
    assert "error: every trial failed, the first one: --optim.warmup-steps 1000 must be 0..120" in job.log.read_text()


@pytest.fixture
def logged_in(mlflow_server):
    """The address of a proxy that adds the login to requests: a headless browser has nobody who types it.

    In the address that the browser opens, it would stop MLflow's page from sending requests of its own.
    """
    login = mlflow_server.login
    authorization = "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()

    class Forward(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            kept = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
            url = mlflow_server.tracking_uri + self.path
            request = Request(url, body, kept | {"Authorization": authorization}, method=self.command)
            try:
                response = open_loopback_url(request, timeout_seconds=60.0)
            except HTTPError as error:
                response = error
            with response:
                content = response.read()
            self.send_response(response.status)
            self.send_header("Content-Type", response.headers.get("Content-Type", ""))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Forward) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


def test_mlflows_pages_show_the_sweep_with_its_trials_and_their_recall(records, logged_in, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: MLflow's page is not opened in a browser (Debian package chromium)")
    _, parent, children = records
    base = f"{logged_in}/#"
    page = text_of(chromium, f"{base}/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}", tmp_path)
    assert re.search(rf"{METRIC} {parent.data.metrics[METRIC]:g}\b", page)
    listed = page[page.index("Child runs") :]
    assert all(name in listed for name in children)
    measured = [run for run in children.values() if f"best/{METRIC}" in run.data.metrics]
    assert len(measured) == 2
    runs, experiments = ([one.info.run_id for one in measured], [parent.info.experiment_id])
    query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps(experiments))}"
    page = text_of(chromium, f"{base}/compare-runs?{query}", tmp_path)
    recalls = sorted(run.data.metrics[f"best/{METRIC}"] for run in measured)
    # The rows in sight: their names one after the other, then the values of both runs row by row.
    words = page[page.index("Metrics Show diff only") : page.index(" Artifacts ")].split()[4:]
    names, values = ([word for word in words if ("/" in word) == is_name] for is_name in (True, False))
    row = names.index(f"best/{METRIC}")
    assert recalls == sorted(map(float, values[2 * row : 2 * row + 2])), page


def text_of(chromium: str, url: str, folder: Path) -> str:
    """Return the words that a page shows."""
    flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [chromium, *flags, "--window-size=1800,1600", "--virtual-time-budget=30000", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    words = re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]+>", " ", done.stdout, flags=re.DOTALL)
    return re.sub(r"\s+", " ", words)
