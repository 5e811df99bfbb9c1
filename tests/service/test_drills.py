"""Drills of the service on a real Ray Serve: clients that leave, replicas that die, updates, a full queue."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

import brewclip
from brewclip.local import RayHead
from brewclip.local.processes import free_port
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, world_seed
from brewclip.service.client import ServiceError
from brewclip.service.settings import EmbedderSettings, LimitSettings, ServiceSettings
from tests.service.engines import MarkedIndex, small_searcher
from tests.service.recordings import spoken

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(900)]

SIZES = EmbedderSettings(cpus_per_replica=0.1, batch_size=4, max_queued=200, shutdown_seconds=20)


class Service:
    """A running Ray Serve, on which the drills deploy the small system."""

    def __init__(self, head: RayHead, port: int, file: Path) -> None:
        self.head = head
        self.settings = ServiceSettings(
            index="unused", port=port, embedder=SIZES, limits=LimitSettings(in_flight=300, request_seconds=60)
        )
        self.file = file
        self.client = brewclip.Client(f"http://127.0.0.1:{port}", timeout_seconds=120)
        self.deployed: tuple[str, float, dict[str, int]] | None = None

    def deploy(self, name: str = "small", seconds: float = 0.0, **sizes: int) -> None:
        """Deploy, unless it is what runs, and wait until all replicas are those of this deployment."""
        from ray import serve

        from brewclip.service.current_index import CurrentIndex
        from brewclip.service.deployments import APPLICATION, build_application

        if self.deployed == (name, seconds, sizes):
            return
        marked = MarkedIndex(self.file)
        settings = replace(self.settings, checkpoint=name, embedder=replace(SIZES, **sizes))
        application = build_application(
            settings,
            load=partial(_load, name, seconds, self.file),
            open_index=lambda settings: CurrentIndex(marked.open, marked.mark),
        )
        serve.run(application, name=APPLICATION, route_prefix="/")
        self.deployed = name, seconds, sizes

    def ask(self, number: int, seed: int = 0) -> str:
        """Return the name of the checkpoint that answered, after a look at the answer."""
        found = self.client.search(audio=spoken(number, seed=seed), top=1)
        assert int(found["results"][0]["id"], 16) == number
        return str(found["model"]["checkpoint"])


def _load(name: str, seconds: float, file: Path, settings: ServiceSettings):
    return small_searcher(name, seconds, file)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    import ray
    from ray import serve

    from brewclip.service.deployments import LOGGING, http_options

    folder = tmp_path_factory.mktemp("drills")
    file = folder / "index.json"
    file.write_text(json.dumps({"count": 30, "version": "v1"}))
    checkout = str(Path(__file__).parents[2])
    with (
        RayHead(folder, num_cpus=2, environment={"PYTHONPATH": checkout}) as head,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in head.environment().items():
            patch.setenv(name, value)
        ray.init(address=head.address)
        found = Service(head, free_port(), file)
        serve.start("HeadOnly", http_options(found.settings), logging_config=LOGGING)
        try:
            yield found
        finally:
            serve.shutdown()
            ray.shutdown()


def test_an_index_that_is_replaced_on_disk_is_served_without_a_failure(service: Service) -> None:
    service.deploy()
    assert service.client.info()["index"] == {"version": "v1", "images": 30}
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda number: service.ask(number % 20, seed=number), range(60))
        replace_index(service, 20, "v2")
        assert set(answers) == {"small"}
    assert wait_for(lambda: service.client.info()["index"] == {"version": "v2", "images": 20}, 10)
    replace_index(service, 30, "v1")
    assert wait_for(lambda: service.client.info()["index"] == {"version": "v1", "images": 30}, 10)


def replace_index(service: Service, count: int, version: str) -> None:
    new = service.file.with_suffix(".new")
    new.write_text(json.dumps({"count": count, "version": version}))
    new.replace(service.file)


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_what_the_engine_refuses_reaches_the_client_as_its_problem(service: Service) -> None:
    service.deploy()
    with pytest.raises(ServiceError) as caught:
        service.client.search(like="ffffffffffffffff")
    assert (caught.value.status, caught.value.cause) == (404, "unknown_image")
    assert service.client.thumbnail(f"{3:016x}") == service.client.image(f"{3:016x}")


def test_no_request_fails_while_another_checkpoint_takes_its_place(service: Service) -> None:
    service.deploy()
    updated = threading.Event()

    def update() -> None:
        service.deploy("new")
        updated.set()

    def ask(number: int) -> str:
        return service.ask(number % 30, seed=number)

    with ThreadPoolExecutor(5) as pool:
        pool.submit(update)
        answers = list(pool.map(ask, range(450)))
        assert updated.wait(120)
        answers += list(pool.map(ask, range(450, 500)))
    counts = Counter(answers)
    assert set(counts) <= {"small", "new"} and sum(counts.values()) == 500
    assert set(answers[450:]) == {"new"}


def test_a_hundred_clients_that_leave_cost_nobody_an_answer(service: Service) -> None:
    service.deploy("slow", seconds=0.3)
    body = spoken(3)
    for number in range(100):
        connection = HTTPConnection("127.0.0.1", service.settings.port)
        connection.request("POST", "/v1/search", spoken(number % 30, seed=number), {"Content-Type": "audio/wav"})
        connection.close()
    started = time.monotonic()
    assert int(service.client.search(audio=body, top=1)["results"][0]["id"], 16) == 3
    # All of them in batches of four would take 7.5 s.
    assert service.client.search(text="image 4", top=1)["total"] == 30
    assert wait_for(lambda: in_flight(service) == 0), "places of those who left are free again"
    print(f"answered after {time.monotonic() - started:.1f} s")


def in_flight(service: Service) -> float:
    with urllib.request.urlopen(service.client.url + "/metrics", timeout=30) as response:
        lines = [line for line in response.read().decode().splitlines() if "searches_in_flight{" in line]
    return float(lines[0].split()[-1])


def test_a_killed_replica_costs_no_answer_and_comes_back(service: Service) -> None:
    service.deploy("two", seconds=0.05, min_replicas=2, max_replicas=2)
    before = replica_pids()
    assert len(before) == 2
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda number: service.ask(number % 30, seed=number), range(80))
        time.sleep(0.3)
        os.kill(min(before), signal.SIGKILL)
        assert Counter(answers) == {"two": 80}
    assert wait_for(lambda: len(replica_pids() - {min(before)}) == 2)


def replica_pids() -> set[int]:
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return {actor.pid for actor in actors if "#embedder#" in (actor.name or "")}


def test_a_full_queue_is_said_with_a_time_to_come_again_and_recovers(service: Service) -> None:
    service.deploy("busy", seconds=0.5, max_queued=2, batch_size=1)
    causes: Counter[tuple[int, str, str]] = Counter()

    def ask(number: int) -> None:
        request = urllib.request.Request(
            service.client.url + "/v1/search", spoken(number % 30, seed=number), {"Content-Type": "audio/wav"}
        )
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.HTTPError as error:
            causes[error.code, json.load(error)["cause"], error.headers["Retry-After"]] += 1

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(ask, range(20)))
    assert set(causes) == {(429, "busy", "1")} and causes.total() >= 10
    assert service.ask(5) == "busy"


def test_the_serve_config_of_the_manifest_is_deployed_and_answers_a_real_query(
    service: Service, shared_directory: Path, tmp_path: Path
) -> None:
    """As the operator does it: by the dashboard's REST API. Last, as it needs a Serve of its own."""
    import yaml
    from ray import serve

    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        draw_scene(sample_scene(world_seed("scenes/test"), number), 96).save(images / f"{number}.png")
    brewclip.load("zero_shot", clip="scenes").build_index([images], tmp_path / "index")
    manifest = (Path(__file__).parents[2] / "k8s" / "search" / "service.yaml").read_text()
    config = yaml.safe_load(yaml.safe_load(manifest)["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    port = free_port()
    # What is of the cluster: its address, bucket and size.
    local = {"index": str(tmp_path / "index"), "host": "127.0.0.1", "port": port, "ingress_replicas": 1}
    application["args"] |= local | {"embedder": {"cpus_per_replica": 0.5, "max_queued": 128}}
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    serve.shutdown()
    request = urllib.request.Request(
        f"{service.head.dashboard_url}/api/serve/applications/",
        json.dumps(config).encode(),
        service.head.request_headers() | {"Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=120).close()
    client = brewclip.Client(f"http://127.0.0.1:{port}", timeout_seconds=300)
    assert wait_for(lambda: is_ready(client), 400)
    found = client.search(audio=shared_directory / "speech" / "jfk.flac", top=3)
    assert "fellow Americans" in found["query"]["transcript"] and found["query"]["language"] == "en"
    assert [one["rank"] for one in found["results"]] == [1, 2, 3] and found["total"] == 6
    assert client.thumbnail(found["results"][0]["id"]).startswith(b"\xff\xd8")


def is_ready(client: brewclip.Client) -> bool:
    try:
        urllib.request.urlopen(f"{client.url}/readyz", timeout=30).close()
    except OSError:
        return False
    return True
