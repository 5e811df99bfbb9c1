"""The web service as an ASGI app over a `SearchEngine`: API, images, page, metrics. Needs no Ray.

uvicorn.run(build_app(engine, settings))
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi import Query as Parameter
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp

from brewclip.audio import SAMPLE_RATE_HZ
from brewclip.config.whisper_names import LANGUAGES
from brewclip.service import metrics as prometheus
from brewclip.service.engine import MAX_SOUND_WEIGHT, Answer, Facts, ImageFile, Query, SearchEngine
from brewclip.service.examples import add_example_routes, read_examples
from brewclip.service.gate import Gate
from brewclip.service.media import AUDIO_TYPES, JSON_TYPE, decode_image, decode_recording, media_type_of, read_body
from brewclip.service.metrics import ServiceMetrics
from brewclip.service.pages import cached_response, page_response
from brewclip.service.problems import Problem, busy, install_handlers, invalid
from brewclip.service.schema import (
    ImageId,
    InfoResponse,
    ProblemDocument,
    SearchResponse,
    TextQuery,
    response_of,
    shared_of,
)
from brewclip.service.settings import ServiceSettings
from brewclip.version import __version__

_SEARCH = "/v1/search"
_READY_SECONDS = 2.0  # how long a real query's success holds: probes must not keep the models busy
_IMAGE_CACHE = "private, max-age=300"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ProblemDocument, "description": "What is wrong with the request, see docs/serving.md"},
    429: {"model": ProblemDocument, "description": "Too many searches wait; Retry-After says when to come again"},
    503: {"model": ProblemDocument, "description": "No replica answers at present"},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (*AUDIO_TYPES, "image/*")}
        | {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/TextQuery"}}},
    }
}


def build_app(
    engine: SearchEngine, settings: ServiceSettings, *, token: str = "", metrics: ServiceMetrics | None = None
) -> ASGIApp:
    """Build the app.

    Args:
        engine: answers queries.
        settings: limits, and whether queries are logged.
        token: that requests must bring; empty if none is needed.
        metrics: of this app.

    Raises:
        UserError: if there are to be example recordings, and they cannot be used.
    """
    metrics = metrics or ServiceMetrics()
    app = FastAPI(
        title="BrewCLIP", version=__version__, docs_url=None, redoc_url=None, separate_input_output_schemas=False
    )
    install_handlers(app)
    service = _Service(engine, settings, metrics)
    app.add_api_route(
        _SEARCH,
        service.search,
        methods=["POST"],
        response_model=SearchResponse,
        responses=_PROBLEMS,
        openapi_extra=_BODY,
        summary="Search images with a recording, an image, words, or an indexed image",
    )
    app.add_api_route("/v1/info", service.info, response_model=InfoResponse, responses=_PROBLEMS)
    for path, send in (("", service.original), ("/thumbnail", service.thumbnail)):
        app.add_api_route(f"/v1/images/{{image_id}}{path}", send, response_class=Response, responses=_PROBLEMS)
    add_example_routes(app, read_examples(settings.examples, settings.max_body_bytes))
    app.add_api_route("/healthz", service.health, response_class=Response)
    app.add_api_route("/readyz", service.ready, response_class=Response, responses=_PROBLEMS)
    app.add_api_route("/metrics", service.metrics_text, response_class=Response)
    app.add_api_route("/{name:path}", service.page, include_in_schema=False)
    _describe_text_query(app)
    return Gate(app, token, metrics)


def _describe_text_query(app: FastAPI) -> None:
    """Add the JSON body to the schema: it is read with the raw body, so FastAPI does not know it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        parts = TextQuery.model_json_schema(ref_template="#/components/schemas/{model}")
        found = schema.setdefault("components", {}).setdefault("schemas", {})
        found |= parts.pop("$defs", {}) | {"TextQuery": parts}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


class _Service:
    """The routes."""

    def __init__(self, engine: SearchEngine, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self._in_flight = 0
        self._ready_until = 0.0

    # ------------------------------------------------------------------ search

    async def search(
        self,
        request: Request,
        top: Annotated[int, Parameter(ge=1, description="Results; of JSON, its own member counts.")] = 20,
        offset: Annotated[int, Parameter(ge=0)] = 0,
        weight: Annotated[
            float | None,
            Parameter(ge=0, le=MAX_SOUND_WEIGHT, description="Of the sound; by default the system's own."),
        ] = None,
        task: Annotated[Literal["", "transcribe", "translate"], Parameter(description="Of Whisper.")] = "",
        language: Annotated[
            str | None, Parameter(max_length=8, description="That is spoken; empty detects it.")
        ] = None,
    ) -> SearchResponse:
        """Search with a body of audio/*, image/* or JSON; the parameters are for recordings and images."""
        if language and language not in LANGUAGES:
            raise Problem(422, "unknown_language", "language must be a code of Whisper, such as de")
        asked = Query("audio", sound_weight=weight, task=task, language=language, top=top, offset=offset)
        async with self._place():
            kind = media_type_of(request)
            data = await read_body(request, self.settings)
            start = time.perf_counter()
            query = await self._query(kind, data, asked)
            decoded = time.perf_counter()
            answer = await self._answer(query, request)
        timing = {"decode": decoded - start} | answer.timings_seconds | {"total": time.perf_counter() - start}
        self.metrics.add_search(answer, timing)
        if self.settings.log_queries:
            heard = answer.transcription.transcript if answer.transcription else query.text
            request.state.log["query"] = heard
        return response_of(query, answer, timing)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold one of the places of searches in flight, taken before the body is read."""
        if self._in_flight >= self.settings.limits.in_flight:
            raise busy(f"{self._in_flight} searches are worked on or wait: come again")
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)

    async def _query(self, kind: str, data: bytes, asked: Query) -> Query:
        """Return the query of a body; raises `Problem` if it is none, or asks for too much."""
        if kind == JSON_TYPE:
            query = self._words(data)
        elif kind in AUDIO_TYPES:
            query = replace(asked, waveform=await decode_recording(data, self.settings))
        else:
            query = replace(asked, kind="image", image=await decode_image(data))
        limits = self.settings.limits
        for name, value, most in (("top", query.top, limits.top), ("offset", query.offset, limits.offset)):
            if value > most:
                raise Problem(422, "out_of_range", f"{name} is {value}; it must be {most} at most")
        return query

    def _words(self, data: bytes) -> Query:
        try:
            words = TextQuery.model_validate_json(data)
        except ValidationError as error:
            raise invalid(error) from None
        text, most = words.text.strip(), self.settings.limits.text_characters
        if not text and not words.like:
            raise Problem(422, "empty", "give a text, or the id of an image as like")
        if len(text) > most:
            raise Problem(422, "too_long", f"the text has {len(text)} characters; {most} at most are read")
        return Query(
            "like" if words.like else "text",
            text=text,
            like=words.like,
            text_weight=words.weights.text,
            like_weight=words.weights.like,
            top=words.top,
            offset=words.offset,
        )

    async def _answer(self, query: Query, request: Request) -> Answer:
        """Return the answer of the engine; a search that nobody waits for any more is cancelled."""
        seconds = self.settings.limits.request_seconds
        search = asyncio.ensure_future(self.engine.search(query))
        gone = asyncio.ensure_future(_wait_until_gone(request))
        try:
            await asyncio.wait((search, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if search.done():
                return search.result()
        finally:
            search.cancel()
            gone.cancel()
        if gone.done():
            raise Problem(400, "disconnected", "the client closed the connection")
        raise Problem(504, "timeout", f"the search took more than {seconds:g} s")

    # ------------------------------------------------------------------ images, information, page

    async def original(self, image_id: ImageId, request: Request) -> Response:
        """Return an indexed image as it is stored."""
        return _image_response(await self.engine.original(image_id), request)

    async def thumbnail(self, image_id: ImageId, request: Request) -> Response:
        """Return a JPEG of an indexed image, whose long side has at most 256 pixels."""
        return _image_response(await self.engine.thumbnail(image_id), request)

    async def info(self) -> InfoResponse:
        """Return what is served, and the limits."""
        facts, limits = await self.engine.facts(), self.settings.limits
        return InfoResponse(
            version=__version__,
            reads_text=facts.reads_text,
            hears_sound=facts.hears_sound,
            task=facts.task,
            language=facts.language,
            threshold=facts.threshold,
            weight_max=MAX_SOUND_WEIGHT,
            limits={
                "body_bytes": self.settings.max_body_bytes,
                "speech_seconds": limits.speech_seconds,
                "text_characters": limits.text_characters,
                "top": limits.top,
                "offset": limits.offset,
            },
            **shared_of(facts),
        )

    async def health(self) -> Response:
        """Answer as long as the process does."""
        return Response("ok\n", media_type="text/plain")

    async def ready(self, request: Request) -> Response:
        """Answer once a real query is answered; a success holds for two seconds."""
        if time.monotonic() >= self._ready_until:
            facts = await self.engine.facts()
            await self._answer(_probe(facts), request)
            self._ready_until = time.monotonic() + _READY_SECONDS
        return Response("ready\n", media_type="text/plain")

    async def metrics_text(self) -> Response:
        """Return this ingress's metrics in Prometheus' text format."""
        return Response(self.metrics.render(), media_type=prometheus.CONTENT_TYPE)

    async def page(self, name: str, request: Request) -> Response:
        """Return a file of the page."""
        if f"/{name}" == _SEARCH:  # the page takes every GET that no route has
            raise Problem(405, "method_not_allowed", "searches are sent by POST", {"Allow": "POST"})
        return page_response(name, request)


def _probe(facts: Facts) -> Query:
    """Return a query that passes through the models: words, or faint noise for a system that reads none."""
    if facts.reads_text:
        return Query("text", text="a photo", top=1)
    noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE_HZ).astype(np.float32)
    return Query("audio", waveform=noise, top=1)


async def _wait_until_gone(request: Request) -> None:
    """Return once the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _image_response(file: ImageFile, request: Request) -> Response:
    return cached_response(file.data, file.media_type, file.tag, _IMAGE_CACHE, request, {})
