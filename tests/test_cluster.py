"""Asking a cluster for room: what is refused at once, what is waited for, and how waiting ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brewclip.cluster import Demand, _remedy, check_resources, connect, uses_gpu
from brewclip.config import ClusterConfig
from brewclip.errors import UserError

CHECKOUT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("nodes", "demand", "room"),
    [
        ([{"CPU": 8}], Demand("it", 1, 4), 2),
        ([{"CPU": 3}, {"CPU": 3}], Demand("it", 1, 4), 0),  # a worker is on one machine
        ([{"CPU": 8, "GPU": 1}, {"CPU": 64}], Demand("it", 2, 4, 1), 1),
        ([{"CPU": 0.0}], Demand("it", 1, 1), 0),
    ],
)
def test_places_are_counted_by_machine(nodes, demand, room):
    assert demand.room_on(nodes) == room


@pytest.mark.parametrize(
    ("nodes", "demand", "remedy"),
    [
        (
            [{"CPU": 2}],
            Demand("it", 1, 4, 1),
            "--cluster.use-gpu False (slow with a large CLIP) and --cluster.cpus-per-worker 2",
        ),
        ([{"CPU": 4}], Demand("it", 8, 1), "--cluster.num-workers 4"),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 4}], Demand("it", 4, 4, 1), "--cluster.num-workers 2"),
        ([{"memory": 1}], Demand("it", 1, 1), "more machines to work: none has a CPU for it"),
    ],
)
def test_the_remedy_fits_what_is_there(nodes, demand, remedy):
    assert _remedy(demand, nodes) == remedy


@pytest.mark.services
def test_what_no_machine_has_is_refused_in_seconds(ray_head):
    connect()
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_resources(Demand("training", 2, 4, 1))
    assert time.monotonic() - started < 15
    assert str(caught.value) == (
        "training asks for 2 workers of 4 CPUs and 1 GPU; the cluster has 4 CPUs and 0 GPUs and no autoscaler to bring "
        "more: set --cluster.use-gpu False (slow with a large CLIP) and --cluster.num-workers 1"
    )


def run_with_own_head(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has no RAY_ADDRESS, with its temporary files in a folder."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from brewclip.cluster import *; from brewclip.config import exit_on_user_error\n" + code,
        ],
        env=environment | {"PYTHONPATH": str(CHECKOUT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.services
def test_nothing_of_an_own_head_stays_after_a_mistake(tmp_path):
    done = run_with_own_head("with exit_on_user_error():\n connect()\n raise UserError('as asked')", tmp_path)
    own = [line for line in done.stderr.splitlines() if not line.endswith("starting it once more")]
    assert (done.returncode, own) == (2, ["error: as asked"])
    assert list(tmp_path.glob("brewclip-*")) == []


@pytest.mark.slow
def test_the_logs_of_an_own_head_stay_where_a_job_failed_with_a_traceback(tmp_path):
    """That a head's logs get there is in tests/local/test_local.py."""
    logs = tmp_path / "logs"
    logs.mkdir()
    head = f"import types; head = types.SimpleNamespace(stop=lambda: None, log_directory=Path({str(logs)!r}))\n"
    done = run_with_own_head(
        f"{head}from brewclip.cluster import _end_head; atexit.register(_end_head, head)\nraise ValueError('a bug')",
        tmp_path,
    )
    assert (done.returncode, logs.exists()) == (1, True)
    assert done.stderr.endswith(f"ValueError: a bug\nRay's logs are in {logs}\n")


@pytest.mark.services
def test_gpus_as_found(ray_head):
    connect()
    assert not uses_gpu(ClusterConfig(use_gpu="auto"))
    assert uses_gpu(ClusterConfig(use_gpu=True))


@pytest.mark.services
@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 2)])
def test_waiting_for_others_says_so_and_ends_when_it_is_asked_to(ray_head, ending, code):
    """All CPUs are held; a job that needs one says what it waits for, and a signal ends it at once."""
    from ray.util import placement_group, remove_placement_group

    connect()
    held = placement_group([{"CPU": 4}])
    assert held.wait(30)
    waiting = (
        "from brewclip.cluster import *; from brewclip.config import exit_on_user_error\n"
        "with exit_on_user_error(): connect(); check_resources(Demand('training', 2, 1))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waiting],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None and job.stderr is not None
        line = job.stdout.readline()
        job.send_signal(ending)
        started = time.monotonic()
        assert job.wait(30) == code
        assert time.monotonic() - started < 10
        words = job.stderr.read()
        assert len(words.splitlines()) == 1, words
    remove_placement_group(held)
    assert re.fullmatch(r"waiting \d+ s: training asks for 2 workers of 1 CPU, 0 CPUs and 0 GPUs free\n", line), line
    check_resources(Demand("training", 4, 1))  # nothing of the ended job is held
