"""Local services: what they refuse and store, where they listen, and that nothing of them is left running."""

import base64
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import mlflow
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from brewclip.local import (
    LocalServices,
    MlflowLogin,
    MlflowServer,
    RayHead,
    S3Key,
    S3Server,
    StateError,
    submit_job,
)
from brewclip.local.processes import (
    SupervisedProcess,
    answers_http,
    open_loopback_url,
    server_environment,
    wait_until_ready,
)
from brewclip.local.ray_jobs import without_chatter
from brewclip.local.server import Server

CHECKOUT = Path(__file__).parents[2]
REFUSED = r"SignatureDoesNotMatch|InvalidAccessKeyId"

# A daemon as hard to get rid of as they come: without a parent, in a session of its own, deaf to SIGTERM.
DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""

PARENT = """
import sys, time
from pathlib import Path
from brewclip.local import LocalServices, S3Server

directory, kind = Path(sys.argv[1]), sys.argv[2]
services = LocalServices(directory) if kind == "all" else S3Server(directory / "s3", directory / "logs")
with services:
    print("ready", flush=True)
    command = sys.stdin.readline().strip()
    if command == "raise":
        raise ValueError("as asked")
"""


def client(server: S3Server, key: S3Key | None = None):
    key = key or server.key
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=key.access_key_id,
        aws_secret_access_key=key.secret_access_key,
        config=Config(retries={"max_attempts": 1}),
    )


def descendants_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def still_there(processes: list[psutil.Process]) -> list[str]:
    """Returns the command lines of those that live."""
    left = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()) or process.name())
        except psutil.NoSuchProcess:
            continue
    return left


def assert_all_end(processes: list[psutil.Process], within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while still_there(processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert still_there(processes) == []


def start_daemon(log_path: Path) -> tuple[SupervisedProcess, list[psutil.Process]]:
    process = SupervisedProcess(
        [sys.executable, "-c", DAEMON],
        environment=server_environment({}),
        log_path=log_path,
        grace_seconds=1.0,
    )
    # the supervisor, the command and the daemon; the process between the two has gone
    wait_until_ready(lambda: len(process.descendants()) == 3, what="the daemon", timeout_seconds=20.0)
    return process, process.descendants()


def test_stop_ends_a_daemon_too(tmp_path: Path) -> None:
    process, all_of_it = start_daemon(tmp_path / "log")
    process.stop()
    assert still_there(all_of_it) == []


def test_the_command_ending_by_itself_ends_its_daemon_too(tmp_path: Path) -> None:
    process, all_of_it = start_daemon(tmp_path / "log")
    os.kill(all_of_it[1].pid, signal.SIGKILL)
    assert_all_end(all_of_it, within_seconds=10.0)
    assert process.exit_code == 128 + signal.SIGKILL


def test_directories_are_rescued_and_removed_when_the_command_has_ended(tmp_path: Path) -> None:
    source, saved = tmp_path / "source", tmp_path / "saved"
    source.mkdir()
    process = SupervisedProcess(
        [sys.executable, "-c", f"open({str(source / 'last words')!r}, 'w').write('bye')"],
        environment=server_environment({}),
        log_path=tmp_path / "log",
        rescue=(source, saved),
        remove=[source],
    )
    process.supervisor.wait(20.0)
    assert (saved / "last words").read_text() == "bye"
    assert not source.exists()


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    class Broken(Server):
        name = "broken"
        start_timeout_seconds = 20.0

        def launch(self) -> SupervisedProcess:
            command = [sys.executable, "-c", "import sys; sys.exit('no such bucket')"]
            return SupervisedProcess(command, environment=server_environment({}), log_path=self.log_path)

        def is_ready(self) -> bool:
            return False

    with pytest.raises(RuntimeError, match=r"broken ended with code 1 .*broken\.log.*no such bucket"):
        Broken(tmp_path).start()


FAKE_RAY = f"""#!{sys.executable}
import http.server, pathlib, sys

starts = pathlib.Path(__file__).with_name("starts")
starts.write_text(starts.read_text() + "+" if starts.exists() else "+")
if len(starts.read_text()) <= FAILURES:
    sys.exit("Timed out waiting for node info")

class Dashboard(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{"data": {{"summary": [{{"raylet": {{"state": "ALIVE"}}}}]}}}}')

(port,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--dashboard-port=")]
http.server.HTTPServer(("127.0.0.1", int(port)), Dashboard).serve_forever()
"""


@pytest.mark.parametrize("failures", [1, 2])
def test_a_ray_head_that_ends_while_it_starts_is_started_once_more(failures, tmp_path, monkeypatch, capsys) -> None:
    program = tmp_path / "ray"
    program.write_text(FAKE_RAY.replace("FAILURES", str(failures)))
    program.chmod(0o700)
    monkeypatch.setattr("brewclip.local.ray_head.program_path", lambda name: str(program))
    head = RayHead(tmp_path / "logs")
    if failures == 1:
        head.start()
        head.stop()
    else:
        with pytest.raises(RuntimeError, match=r"ray ended with code 1 .*Timed out waiting for node info"):
            head.start()
    assert (tmp_path / "starts").read_text() == "++"
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"services: ray ended with code 1 \(log: .*\) while it started, starting it once more", line)


def test_our_key_does_not_meet_the_users_session_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the user's own")
    assert "AWS_SESSION_TOKEN" not in server_environment({"AWS_ACCESS_KEY_ID": "ours"})
    assert server_environment({})["AWS_SESSION_TOKEN"] == "the user's own"


def test_a_key_file_is_private_and_kept(tmp_path: Path) -> None:
    key = S3Key.of_file(tmp_path / "key.json")
    assert S3Key.of_file(tmp_path / "key.json") == key
    assert (tmp_path / "key.json").stat().st_mode & 0o777 == 0o600
    assert key.secret_access_key not in repr(key)
    (tmp_path / "key.json").write_text("[]")
    with pytest.raises(ValueError, match="delete it to get a new one"):
        S3Key.of_file(tmp_path / "key.json")


def test_mlflows_password_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "mlflow-password"
    login = MlflowLogin.of_file(path)
    assert MlflowLogin.of_file(path) == login
    assert path.stat().st_mode & 0o777 == 0o600
    assert login.password not in repr(login)
    path.write_text("short\n")
    with pytest.raises(ValueError, match="delete it to get a new one"):
        MlflowLogin.of_file(path)


def test_a_state_directory_serves_one_run_at_a_time(tmp_path: Path) -> None:
    first = LocalServices(tmp_path, say=lambda line: None)
    with pytest.raises(StateError, match="in use by another run"):
        LocalServices(tmp_path)
    first.stop()
    LocalServices(tmp_path, say=lambda line: None).stop()


def test_only_the_jobs_own_lines_are_passed_on() -> None:
    stamp = "2025-01-31 23:59:59,123\t"
    lines = [
        f"{stamp}INFO packaging.py:785 -- Creating a file package",
        f"{stamp}SUCC cli.py:67 -- Job 'brewclip-1' submitted successfully",
        "step 1",
        f"{stamp}INFO loop.py:3 -- a line of the job that looks like the command's",
        f"{stamp}ERR cli.py:75 -- Job 'brewclip-1' failed",
        "step 1",
    ]
    assert list(without_chatter(iter(lines))) == ["step 1", lines[3]]
    never_submitted = [lines[0], f"{stamp}ERR cli.py:75 -- no head at this address"]
    assert list(without_chatter(iter(never_submitted))) == never_submitted


@pytest.mark.parametrize("name", ["s3-key.json", "mlflow-password"])
def test_a_damaged_secret_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("short")
    command = [sys.executable, "jobs/services.py", "--state", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: --state .*/{name} .*delete it to get a new one\n", done.stderr)


@pytest.mark.services
def test_s3_stores_lists_and_reads_ranges(s3: S3Server, bucket: str) -> None:
    name = bucket.removeprefix("s3://")
    s3.create_bucket(name)  # a second time is no error
    store = client(s3)
    for key in ("a/1.tar", "a/2.tar", "b.json"):
        store.put_object(Bucket=name, Key=key, Body=f"the bytes of {key}".encode())
    assert store.get_object(Bucket=name, Key="a/1.tar")["Body"].read() == b"the bytes of a/1.tar"
    part = store.get_object(Bucket=name, Key="a/1.tar", Range="bytes=4-8")
    assert part["Body"].read() == b"bytes"
    listed = store.list_objects_v2(Bucket=name, Prefix="a/")["Contents"]
    assert [entry["Key"] for entry in listed] == ["a/1.tar", "a/2.tar"]


@pytest.mark.services
def test_s3_refuses_a_wrong_secret_a_wrong_key_and_no_key(s3: S3Server, bucket: str) -> None:
    name = bucket.removeprefix("s3://")
    client(s3).put_object(Bucket=name, Key="x", Body=b"x")
    for key in (S3Key(s3.key.access_key_id, "guessed"), S3Key("guessed", s3.key.secret_access_key)):
        with pytest.raises(ClientError, match=REFUSED):
            client(s3, key).get_object(Bucket=name, Key="x")
        with pytest.raises(ClientError, match=REFUSED):
            client(s3, key).put_object(Bucket=name, Key="x", Body=b"overwritten")
    with pytest.raises(urllib.error.HTTPError, match=r"40[03]"):
        urllib.request.urlopen(f"{s3.endpoint_url}/{name}/x")
    assert client(s3).get_object(Bucket=name, Key="x")["Body"].read() == b"x"


@pytest.mark.services
def test_s3_keeps_its_objects_and_its_port_through_an_outage(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "objects", tmp_path / "logs")
    with server:
        server.create_bucket("objects")
        client(server).put_object(Bucket="objects", Key="x", Body=b"kept")
        server.stop()
        with pytest.raises(EndpointConnectionError):
            client(server).get_object(Bucket="objects", Key="x")
        server.start()
        assert client(server).get_object(Bucket="objects", Key="x")["Body"].read() == b"kept"


@pytest.mark.services
def test_mlflow_keeps_runs_and_artifacts_through_an_outage(
    s3: S3Server, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    (tmp_path / "table.txt").write_text("R@1 54")
    mlflow.set_tracking_uri(mlflow_server.tracking_uri)
    mlflow.set_experiment("outage")
    with mlflow.start_run() as run:
        mlflow.log_metric("test/speech_to_image/R1", 54.0, step=10)
        mlflow.log_artifact(str(tmp_path / "table.txt"))
    mlflow_server.stop()
    mlflow_server.start()
    again = mlflow.MlflowClient(mlflow_server.tracking_uri).get_run(run.info.run_id)
    assert again.data.metrics == {"test/speech_to_image/R1": 54.0}
    stored = client(s3).list_objects_v2(Bucket="mlflow")["Contents"]
    own = [entry["Key"] for entry in stored if run.info.run_id in entry["Key"]]  # other tests log there, too
    assert [key.rpartition("/")[2] for key in own] == ["table.txt"]
    fetched = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="table.txt")
    assert Path(fetched).read_text() == "R@1 54"


def mlflow_status(server: MlflowServer, path: str, user: str = "", password: str = "", method: str = "GET") -> int:
    """Return the status of a request, with a login if a user is given."""
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(server.tracking_uri + path, body, headers, method=method)
    try:
        with open_loopback_url(request, timeout_seconds=30.0) as response:
            return response.status
    except urllib.error.HTTPError as error:
        if error.code == 401:
            assert error.headers["WWW-Authenticate"].startswith("Basic "), "a browser asks for a login"
        return error.code


@pytest.mark.services
def test_mlflow_serves_only_who_logs_in(mlflow_server: MlflowServer) -> None:
    login = mlflow_server.login
    read = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert mlflow_status(mlflow_server, read, login.username, login.password) == 200
    assert mlflow_status(mlflow_server, "/", login.username, login.password) == 200
    for user, password in (("", ""), (login.username, "guessed"), ("admin", login.password)):
        for path in ("/", read, read.replace("/api/", "/ajax-api/"), "/graphql", "/get-artifact?run_id=1&path=x"):
            assert mlflow_status(mlflow_server, path, user, password) == 401, path
        for path in ("/api/2.0/mlflow-artifacts/artifacts", "/api/2.0/mlflow/users/list", "/docs", "/metrics"):
            assert mlflow_status(mlflow_server, path, user, password) == 401, path
        for path in ("/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/users/create", "/v1/traces", "/graphql"):
            assert mlflow_status(mlflow_server, path, user, password, "POST") == 401, path


@pytest.mark.services
def test_mlflows_login_is_in_no_file_but_the_private_one(tmp_path: Path) -> None:
    directory, logs = tmp_path / "mlflow", tmp_path / "logs"
    (tmp_path / "mlflow-password").write_text("the first password\n")
    with MlflowServer(directory, logs, login=MlflowLogin.of_file(tmp_path / "mlflow-password")) as server:
        assert mlflow_status(server, "/", server.login.username, "the first password") == 200
        assert (directory / "basic_auth.ini").stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700
    (tmp_path / "mlflow-password").unlink()  # to have another one
    login = MlflowLogin.of_file(tmp_path / "mlflow-password")
    with MlflowServer(directory, logs, login=login) as server:
        assert mlflow_status(server, "/", login.username, "the first password") == 401
        assert mlflow_status(server, "/", login.username, login.password) == 200
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.log", "mlflow.db", "users.db", "basic_auth.ini"} <= {path.name for path in files}
    assert [path.name for path in files if login.password.encode() in path.read_bytes()] == ["mlflow-password"]


@pytest.mark.services
def test_a_ray_job_gets_the_heads_environment_and_gives_its_exit_code(
    ray_head: RayHead, s3: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(
        "import os, ray, sys\n"
        "ray.init(logging_level='ERROR')\n"
        "names = ['AWS_ENDPOINT_URL', 'MLFLOW_TRACKING_URI', 'COLOUR']\n"
        "show = ray.remote(lambda: [os.environ[name] for name in names])\n"
        "print(*ray.get(show.remote()), *sorted(os.listdir('.')), *sys.argv[1:], sep='|')\n"
        "sys.exit(2)\n"
    )
    (tmp_path / ".gitignore").write_text("/.state/\n")
    for ignored in (".state", ".venv", ".git"):
        (tmp_path / ignored).mkdir()
        (tmp_path / ignored / "large").write_text("")
    lines: list[str] = []
    code = submit_job(ray_head, "python job.py 'two words'", tmp_path, environment={"COLOUR": "red"}, say=lines.append)
    assert code == 2  # what a user's mistake ends with; `ray job submit` alone would say 1
    tracking_uri = ray_head.own_environment["MLFLOW_TRACKING_URI"]
    expected = f"{s3.endpoint_url}|{tracking_uri}|red|.gitignore|job.py|two words"
    assert [line for line in lines if "|" in line] == [expected]


@pytest.mark.services
def test_an_interrupted_submission_stops_the_job(ray_head: RayHead, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)\n")
    jobs: list[psutil.Process] = []

    def interrupt(line: str) -> None:
        if line.startswith("pid "):
            jobs.append(psutil.Process(int(line.removeprefix("pid "))))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit_job(ray_head, "python job.py", tmp_path, say=interrupt)
    assert len(jobs) == 1
    assert_all_end(jobs, within_seconds=20.0)


@pytest.mark.services
def test_everything_listens_on_loopback_only(s3: S3Server, mlflow_server: MlflowServer, ray_head: RayHead) -> None:
    addresses: dict[str, set[str]] = {}
    for process in descendants_of(os.getpid()):
        try:
            connections = process.net_connections("inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        listening = [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN or not c.status]
        addresses.setdefault(process.name(), set()).update(listening)
    listeners = {name: found for name, found in addresses.items() if found}
    assert {"rclone", "gcs_server", "raylet"} <= set(listeners)  # the check finds listeners at all
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert {name: found - loopback for name, found in listeners.items() if found - loopback} == {}


@pytest.mark.services
def test_no_secret_is_on_a_command_line(s3: S3Server, mlflow_server: MlflowServer, ray_head: RayHead) -> None:
    shown = still_there(descendants_of(os.getpid()))
    assert any("rclone" in line for line in shown)
    secrets = (s3.key.secret_access_key, ray_head.token, mlflow_server.login.password)
    assert [line for line in shown if any(secret in line for secret in secrets)] == []


@pytest.mark.services
def test_ray_serves_only_who_has_the_token(ray_head: RayHead) -> None:
    assert answers_http(f"{ray_head.dashboard_url}/api/jobs/", ray_head.request_headers())
    assert not answers_http(f"{ray_head.dashboard_url}/api/jobs/")
    assert not answers_http(f"{ray_head.dashboard_url}/api/jobs/", {"Authorization": "Bearer guessed"})
    code = "import ray; ray.init(logging_level='ERROR'); print(ray.cluster_resources()['CPU'])"
    environment = server_environment(ray_head.environment())
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "4.0", result.stderr


@pytest.mark.services
@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("s3", "return"),
        ("s3", "raise"),
        ("s3", signal.SIGTERM),
        ("s3", signal.SIGINT),  # of all services: tests/jobs/test_documented_commands.py
        ("all", signal.SIGKILL),
    ],
)
def test_nothing_is_left_however_the_program_ends(kind: str, ending: str | signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), kind],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None and program.stdout is not None
    with program:
        while (line := program.stdout.readline().strip()) != "ready":
            assert line.startswith("services: "), line
        started = descendants_of(program.pid)
        assert len(started) >= (2 if kind == "s3" else 15)
        if isinstance(ending, str):
            program.stdin.write(f"{ending}\n")
            program.stdin.flush()
        else:
            program.send_signal(ending)
        program.wait(60)
        at_once = not isinstance(ending, signal.Signals) or ending == signal.SIGINT
        assert_all_end(started, within_seconds=0.0 if at_once else 30.0)  # else the supervisors clean up
    assert list((tmp_path / "tmp").glob("brewclip-*")) == []
    assert (tmp_path / "logs" / "ray" / "gcs_server.out").exists() == (kind == "all")


@pytest.mark.services
def test_nothing_of_a_ray_head_can_be_reached_by_other_users(ray_head):
    """Ray makes its folders writable to everybody; the one that they are in is not."""
    import ray

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    ours = next(folder for folder in session.parents if folder.name.startswith("brewclip-"))
    assert ours.stat().st_mode & 0o777 == 0o700


def test_the_state_directory_is_made_private_even_if_it_exists(tmp_path):
    from brewclip.local import LocalServices

    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    LocalServices(state)
    assert state.stat().st_mode & 0o777 == 0o700
