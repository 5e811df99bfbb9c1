"""The service on Ray Serve: an ingress that reads, checks and decodes, and replicas that embed and search in batches.

`import_path: brewclip.service.deployments:application` in a Serve config; `brewclip serve --print-config` writes one.
"""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from brewclip.service.app import build_app
from brewclip.service.batching import Batcher
from brewclip.service.current_index import CurrentIndex
from brewclip.service.engine import Answer, Facts, ImageFile, Query
from brewclip.service.gate import log_to_stderr
from brewclip.service.local_engine import batched_answer, load_searcher, open_current
from brewclip.service.metrics import ServiceMetrics
from brewclip.service.problems import Problem, busy
from brewclip.service.searcher import Searcher, answered
from brewclip.service.settings import ServiceSettings, read_token, settings_from

APPLICATION, EMBEDDER, INGRESS = "search", "embedder", "ingress"
LOGGING = {"enable_access_log": False}  # the service has its own, which leaves queries out
_IMPORT_PATH = f"{__name__}:application"
_REPLICA_LOST = (ActorDiedError, ActorUnavailableError, ReplicaUnavailableError)
_ATTEMPTS = 3  # a search changes nothing, so it may be asked again where a replica died
_HEALTH_PERIOD_SECONDS, _HEALTH_TIMEOUT_SECONDS = 5.0, 30.0
# A replica whose batch takes as many times the limit of a request is hung, and is replaced.
_HUNG_REQUESTS = 5
# Rounded up: one replica more at least. Without it the old one stops before the new one has loaded its models.
_SURGE_PERCENT = 25
_CONSTRUCTOR_TRIES = 3  # Ray's 20 take an hour to say that a checkpoint is missing
_SERVE_SECONDS = 15.0  # by which Serve's own timeout, without a problem document, comes after ours

LoadSearcher = Callable[[ServiceSettings], Searcher]
OpenIndex = Callable[[ServiceSettings], CurrentIndex]


class Embedder:
    """A replica: Whisper, CLIP and the index, behind a batcher whose thread leaves the event loop free."""

    def __init__(self, settings: ServiceSettings, load: LoadSearcher) -> None:
        log_to_stderr()
        self._settings = settings
        self._searcher = load(settings)
        self._batcher: Batcher[Query, Answer | Problem] = Batcher(
            self._searcher.answer, settings.embedder.batch_size, self._take_threads
        )
        self._searcher.warm_up()

    def _take_threads(self) -> None:
        import torch

        torch.set_num_threads(max(1, int(self._settings.embedder.cpus_per_replica)))

    async def search(self, query: Query) -> Answer | Problem:
        """Answer a query. A problem is returned, since Ray would write the trace of each that is raised."""
        try:
            return await batched_answer(self._batcher, query)
        except Problem as problem:
            return problem

    async def facts(self) -> Facts:
        """Return which system answers."""
        return self._searcher.facts()

    def check_health(self) -> None:
        """Fail if a batch hangs: Ray replaces the replica."""
        most = _HUNG_REQUESTS * self._settings.limits.request_seconds
        if self._batcher.busy_seconds > most:
            raise RuntimeError(f"a batch has taken more than {most:g} s")


class RayEngine:
    """A search engine whose replicas are elsewhere; images come from the index as this process has it open."""

    def __init__(self, embedder: DeploymentHandle[Any], index: CurrentIndex, max_queued: int) -> None:
        self._embedder, self._index, self._max_queued = embedder, index, max_queued

    async def search(self, query: Query) -> Answer:
        """Answer a query, once more where a replica is lost; raises `Problem` 429 and 503."""
        return answered(await self._ask(self._embedder.search, query))

    async def facts(self) -> Facts:
        """Return which system answers."""
        facts: Facts = await self._ask(self._embedder.facts)
        return facts

    async def _ask(self, method: Any, *arguments: Any) -> Any:
        for _ in range(_ATTEMPTS):
            response = method.remote(*arguments)
            try:
                return await response
            except asyncio.CancelledError:  # the client is gone, or the search took too long
                response.cancel()
                raise
            except BackPressureError:
                raise busy(f"{self._max_queued} queries wait already: come again") from None
            except DeploymentUnavailableError:
                break
            except _REPLICA_LOST:
                continue
        raise Problem(503, "unavailable", "no replica answers at present: come again", {"Retry-After": "5"})

    async def original(self, image_id: str) -> ImageFile:
        """Return an indexed image as it is stored."""
        return await asyncio.to_thread(self._index.original, image_id)

    async def thumbnail(self, image_id: str) -> ImageFile:
        """Return a small JPEG of an indexed image."""
        return await asyncio.to_thread(self._index.thumbnail, image_id)


@serve.ingress()
class Ingress:
    """The web app on a replica."""

    def __init__(self, settings: ServiceSettings, embedder: DeploymentHandle[Any], open_index: OpenIndex) -> None:
        log_to_stderr()
        self._settings = settings
        self._engine = RayEngine(embedder, open_index(settings), settings.embedder.max_queued)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray's name
        replica = serve.get_replica_context().replica_id.unique_id
        token = read_token(self._settings)  # from this process's environment: arguments are shown on the dashboard
        return build_app(self._engine, self._settings, token=token, metrics=ServiceMetrics(replica))


def open_served(settings: ServiceSettings) -> CurrentIndex:
    """Open the index for its images; whether it fits the system, the embedder checks."""
    return open_current(settings.index, lambda index: None)


def build_application(
    settings: ServiceSettings, load: LoadSearcher = load_searcher, open_index: OpenIndex = open_served
) -> Application:
    """Return the application of both deployments.

    Args:
        settings: of the service.
        load: loads system and index on a replica.
        open_index: opens the index on an ingress.
    """
    deploy: Any = serve.deployment  # its types are those of a decorator with options
    sizes, shared = settings.embedder, _shared_options()
    embedder = deploy(Embedder).options(
        name=EMBEDDER,
        ray_actor_options={"num_cpus": sizes.cpus_per_replica, "num_gpus": sizes.gpus_per_replica},
        # One batch is worked on, the next fills meanwhile; with fewer, batches would never be full.
        max_ongoing_requests=2 * sizes.batch_size,
        max_queued_requests=sizes.max_queued,
        graceful_shutdown_timeout_s=sizes.shutdown_seconds,
        **_number_of_replicas(settings),
        **shared,
    )
    ingress = deploy(Ingress).options(
        name=INGRESS,
        num_replicas=settings.ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4 * settings.limits.in_flight,  # images beside searches, which the app itself limits
        max_queued_requests=settings.limits.in_flight,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_timeout_s=sizes.shutdown_seconds,
        **shared,
    )
    return ingress.bind(settings, embedder.bind(settings, load), open_index)


def _shared_options() -> dict[str, Any]:
    return {
        "max_surge_percent": _SURGE_PERCENT,
        "health_check_period_s": _HEALTH_PERIOD_SECONDS,
        "health_check_timeout_s": _HEALTH_TIMEOUT_SECONDS,
        "max_constructor_retry_count": _CONSTRUCTOR_TRIES,
    }


def _number_of_replicas(settings: ServiceSettings) -> dict[str, Any]:
    sizes = settings.embedder
    if sizes.max_replicas == sizes.min_replicas:
        return {"num_replicas": sizes.min_replicas}
    bounds = {"min_replicas": sizes.min_replicas, "max_replicas": sizes.max_replicas}
    return {"autoscaling_config": bounds | {"target_ongoing_requests": sizes.batch_size}}


def application(values: Mapping[str, Any]) -> Application:
    """Return the application of a Serve config, whose `args` are settings.

    Raises:
        UserError: if one is unknown or not allowed.
    """
    return build_application(settings_from(values))


def http_options(settings: ServiceSettings) -> dict[str, Any]:
    """Return the options of Ray Serve's proxies."""
    seconds = settings.limits.upload_seconds + settings.limits.request_seconds + _SERVE_SECONDS
    return {"host": settings.host, "port": settings.port, "request_timeout_s": seconds}


def serve_config(settings: ServiceSettings) -> str:
    """Return the configuration for `serve deploy`, as JSON, which is YAML."""
    config = {
        "proxy_location": "EveryNode",
        "http_options": http_options(settings),
        "logging_config": LOGGING,
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": _IMPORT_PATH,
                "args": _changed(settings, ServiceSettings(index="")),
            }
        ],
    }
    return json.dumps(config, indent=2) + "\n"


def _changed(settings: Any, defaults: Any) -> dict[str, Any]:
    """Return the settings that are not the defaults, nested."""
    changed: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value, default = getattr(settings, item.name), getattr(defaults, item.name)
        if dataclasses.is_dataclass(value):
            value, default = _changed(value, default), {}
        if value != default:
            changed[item.name] = value
    return changed
