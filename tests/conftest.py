"""Fixtures that several tests share: the local services, started on first use, and shared inputs.

The services' variables (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS) are in the environment from the first test
that asks for a service to the end of the session.
"""

import os
import secrets
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

# A shell's background job ignores Ctrl-C, and so would the programs that tests start from it and end by Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is imported: several test processes and Ray's workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray Train asks its workers this often; with its default of 2 s, a test of five steps takes ten.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# What costs seconds of a core at each start of a head or a training: idle workers that nobody asked for, and the
# process that watches for nodes that will go (tests of notices switch it on).
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Below this number of log files, Ray looks for new ones ten times a second instead of twice: 3 % of a core.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
# Statistics of processes for the dashboard's page, which nobody opens.
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "30000")
# Read once, at Ray's import: the address of a head of this machine stays 127.0.0.1.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# One token for every Ray of this session, those that `ray.init()` starts too: Ray reads it once per
# process, and without it writes one into the user's home.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import pytest
import torch

from brewclip.local import MlflowServer, RayHead, S3Server

torch.set_num_threads(1)

CHECKOUT = Path(__file__).parents[1]
# A file runs in one process, so one that takes minutes and starts last would end alone.
LONGEST_FILES = (
    "training/test_interruptions.py",
    "k8s/test_drill.py",
    "jobs/test_sweep.py",
    "datasets/test_chain.py",
    "k8s/test_entrypoints.py",
    "jobs/test_documented_commands.py",
    "jobs/test_main_job.py",
    "paper/test_real_speech.py",
    "local/test_local.py",
    "data/test_s3_fault_matrix.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files start first, the others in their order."""
    places = {CHECKOUT / "tests" / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def session_environment() -> Iterator[pytest.MonkeyPatch]:
    """Changes to os.environ that are undone at the end of the session."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def set_variables(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        patch.setenv(name, value)


@pytest.fixture(scope="session")
def service_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the logs of all services of this session."""
    return tmp_path_factory.mktemp("service_logs")


@pytest.fixture(scope="session")
def s3(
    tmp_path_factory: pytest.TempPathFactory, service_logs: Path, session_environment: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    """An S3 server; boto3, s3fs and MLflow find it by the environment."""
    with S3Server(tmp_path_factory.mktemp("s3"), service_logs) as server:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):  # the user's own would not fit our key
            session_environment.delenv(name, raising=False)
        set_variables(session_environment, server.environment())
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """The URL of a new, empty bucket."""
    return s3.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory,
    s3: S3Server,
    service_logs: Path,
    session_environment: pytest.MonkeyPatch,
) -> Iterator[MlflowServer]:
    """An MLflow server with its artifacts on the S3 server; MLflow's client finds it by the environment."""
    artifacts = s3.create_bucket("mlflow")
    with MlflowServer(tmp_path_factory.mktemp("mlflow"), service_logs, artifacts, s3.environment()) as server:
        set_variables(session_environment, server.environment())
        yield server


@pytest.fixture(scope="session")
def ray_head(
    s3: S3Server, mlflow_server: MlflowServer, service_logs: Path, session_environment: pytest.MonkeyPatch
) -> Iterator[RayHead]:
    """A Ray head of four CPUs whose workers reach the S3 and MLflow servers; `ray.init()` finds it."""
    environment = s3.environment() | mlflow_server.environment()
    with RayHead(service_logs, num_cpus=4, environment=environment) as head:
        set_variables(session_environment, head.environment())
        yield head


@pytest.fixture(scope="module", autouse=True)
def no_ray_connection_is_left() -> Iterator[None]:
    """Disconnect this process from Ray after each file: the next one may want another cluster."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture(scope="session")
def shared_directory() -> Path:
    """The directory `shared` next to the checkout, which holds inputs that are not in the repository."""
    directory = CHECKOUT.parent / "shared"
    if not directory.is_dir():
        pytest.skip("the directory 'shared' (speech recordings) is not next to the checkout")
    return directory
