"""The API over a small engine in this process: answers, problem documents, limits, who may ask, and the page."""

import asyncio
import base64
import io
import json
import logging
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from brewclip.service.app import build_app
from brewclip.service.local_engine import LocalEngine
from brewclip.service.settings import LimitSettings, ServiceSettings
from tests.service.engines import jpeg, small_searcher
from tests.service.recordings import sound_file, spoken
from tests.test_audio import flac_that_claims

WAV = {"Content-Type": "audio/wav"}
TOKEN = "0123456789abcdef"


def client_of(token: str = "", searcher=None, **settings) -> TestClient:
    engine = LocalEngine(searcher or small_searcher())
    app = build_app(engine, ServiceSettings(index="unused", **settings), token=token)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return client_of()


def is_problem(response, status: int, cause: str) -> bool:
    document = response.json()
    return (
        response.headers["content-type"] == "application/problem+json"
        and (response.status_code, document["status"], document["cause"]) == (status, status, cause)
        and document["type"].endswith(cause)
        and bool(document["title"] and document["detail"])
        and "/" not in document["detail"].replace("audio/", "").replace("image/", "").replace("application/", "")
    )


def ids(results: list[dict]) -> list[int]:
    return [int(result["id"], 16) for result in results]


# ---------------------------------------------------------------------- answers


def test_a_recording_finds_its_image_and_each_channel_its_own(client):
    found = client.post("/v1/search?top=4", content=spoken(7), headers=WAV).json()
    assert ids(found["results"])[:2] == [7, 8] and [one["rank"] for one in found["results"]] == [1, 2, 3, 4]
    assert ids(found["channels"]["heard"])[0] == 7 and ids(found["channels"]["sounded_like"])[0] == 8
    assert len(found["channels"]["heard"]) == 5
    query = {"kind": "audio", "transcript": "image 7", "language": "en", "confidence": 0.9, "rejection": ""}
    assert found["query"] == query | {"task": "transcribe"}
    assert (found["total"], found["top"], found["offset"]) == (30, 4, 0)
    assert (found["weight"], found["weight_max"], found["threshold"], found["nothing_close"]) == (0.5, 4, 0.6, False)
    assert set(found["timing_seconds"]) == {"decode", "queue", "whisper", "clip", "search", "total"}
    assert found["model"]["checkpoint"] == "small" and found["index"] == {"version": "v1", "images": 30}


def test_results_lead_to_images(client):
    (one,) = client.post("/v1/search?top=1", content=spoken(7), headers=WAV).json()["results"]
    for url in (one["image_url"], one["thumbnail_url"]):
        image = client.get(url)
        assert image.headers["content-type"] == "image/jpeg" and image.content == jpeg(7)
        assert client.get(url, headers={"If-None-Match": image.headers["etag"]}).status_code == 304
        assert "sandbox" in image.headers["content-security-policy"]


@pytest.mark.parametrize("form", [{"format": "FLAC", "subtype": "PCM_16"}, {"format": "OGG", "subtype": "VORBIS"}])
def test_other_sound_files(client, form):
    kind = {"Content-Type": f"audio/{form['format'].lower()}; codecs=any"}
    assert ids(client.post("/v1/search", content=spoken(4, **form), headers=kind).json()["results"])[0] in (3, 4, 5)


def test_the_slider_leads_from_text_to_sound(client):
    first = [
        ids(client.post(f"/v1/search?weight={weight}", content=spoken(7), headers=WAV).json()["results"])[0]
        for weight in (0, 4)
    ]
    assert first == [7, 8]


def test_words_an_image_and_more_like_this(client):
    assert ids(client.post("/v1/search", json={"text": "image 3", "top": 2}).json()["results"])[0] == 3
    image = client.post("/v1/search", content=jpeg(9), headers={"Content-Type": "image/jpeg"}).json()
    assert image["query"]["kind"] == "image" and ids(image["results"])[0] == 9
    alike = client.post("/v1/search", json={"like": f"{9:016x}"}).json()
    assert 9 not in ids(alike["results"]) and alike["total"] == 29 and alike["query"]["kind"] == "like"
    both = {"like": f"{9:016x}", "text": "image 3", "weights": {"like": 0.1, "text": 1}}
    assert ids(client.post("/v1/search", json=both).json()["results"])[0] == 3


def test_pages_of_results_join_without_a_seam(client):
    whole = ids(client.post("/v1/search?top=30", content=spoken(7), headers=WAV).json()["results"])
    parts = [
        client.post(f"/v1/search?top=8&offset={offset}", content=spoken(7), headers=WAV).json()["results"]
        for offset in range(0, 32, 8)
    ]
    assert [number for part in parts for number in ids(part)] == whole and len(parts[-1]) == 6
    assert [one["rank"] for part in parts for one in part] == list(range(1, 31))


def test_nothing_close_below_the_threshold(client):
    assert client.post("/v1/search", json={"text": "image 3"}).json()["nothing_close"] is False
    far = client.post("/v1/search", json={"text": "something else", "offset": 3}).json()
    assert far["nothing_close"] is True


def test_a_recording_that_comes_again_is_not_heard_again():
    searcher = small_searcher()
    client = client_of(searcher=searcher)
    for parameters in ("", "?offset=20", "?weight=2"):
        assert client.post(f"/v1/search{parameters}", content=spoken(7), headers=WAV).status_code == 200
    client.post("/v1/search?language=de&task=translate", content=spoken(7), headers=WAV)
    assert searcher.system.batches == [1, 1]


# ---------------------------------------------------------------------- problems


def png(*size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, 77).save(buffer, "PNG")
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    data = bytearray(png(1, 1))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def half_a_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((500, 400), 90).save(buffer, "JPEG")
    return buffer.getvalue()[:500]


NOISE = np.random.default_rng(0).uniform(-0.9, 0.9, 3200)
# Sounds and images made to do harm, as in tests/test_audio.py and tests/data/test_hostile_images.py.
HOSTILE = {
    "silence": ("audio/wav", lambda: sound_file(np.zeros(3200)), 422, "silent"),
    "no samples": ("audio/wav", lambda: sound_file(np.zeros(0)), 422, "no_samples"),
    "no speech": ("audio/wav", lambda: sound_file(NOISE), 422, "no_speech"),
    "too long": ("audio/wav", lambda: sound_file(np.ones(16_000 * 61) / 2, subtype="PCM_U8"), 422, "too_long"),
    "text": ("audio/mpeg", lambda: b"not a sound file at all" * 100, 422, "not_audio"),
    "rate": ("audio/wav", lambda: sound_file(NOISE, 999), 422, "corrupt"),
    "channels": ("audio/wav", lambda: sound_file(np.zeros((100, 33))), 422, "corrupt"),
    "claims 500 kHz": ("audio/flac", lambda: flac_that_claims(500_000, 1, 32_000), 422, "corrupt"),
    "claims hours": ("audio/flac", lambda: flac_that_claims(16_000, 1, 2**36 - 1), 422, "too_long"),
    "claims much": ("audio/flac", lambda: flac_that_claims(192_000, 8, 2**25 + 1), 422, "too_long"),
    "chunks": ("audio/wav", lambda: sound_file(NOISE)[:36] + b"junk\0\0\0\0" * 10**6 + b"junk", 422, "not_audio"),
    "no image": ("image/png", lambda: b"\x89PNG\r\n\x1a\nno image", 422, "unusable_image"),
    "drawing": ("image/svg+xml", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "unusable_image"),
    "half": ("image/jpeg", half_a_jpeg, 422, "unusable_image"),
    "pixels": ("image/png", lambda: png_that_claims(12_000, 10_000), 422, "unusable_image"),
    "a long line": ("image/png", lambda: png(1, 1_000_000), 422, "unusable_image"),
    "a line": ("image/png", lambda: png(65_535, 1), 422, "unusable_image"),
    "nothing": ("audio/wav", lambda: b"", 422, "empty"),
    "a film": ("video/webm", lambda: b"\x1aE\xdf\xa3", 415, "unsupported_type"),
    "a form": ("multipart/form-data; boundary=x", lambda: b"--x--", 415, "unsupported_type"),
}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("case", HOSTILE)
def test_media_that_cannot_be_used(client, case):
    kind, make, status, cause = HOSTILE[case]
    response = client.post("/v1/search", content=make(), headers={"Content-Type": kind})
    assert is_problem(response, status, cause), response.text


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"{", "invalid_request"),
        (b"[" * 100_000, "invalid_request"),
        (b'{"text": 3}', "invalid_request"),
        (b'{"text": "a", "topp": 3}', "invalid_request"),
        (b'{"text": "a", "weights": {"text": NaN}}', "invalid_request"),
        (b'{"like": "../../etc/passwd"}', "invalid_request"),
        (b"{}", "empty"),
        (b'{"text": "  "}', "empty"),
        (b'{"text": "a", "top": 101}', "out_of_range"),
        (b'{"text": "a", "offset": 10001}', "out_of_range"),
        (json.dumps({"text": "a" * 1001}).encode(), "too_long"),
    ],
)
def test_json_that_cannot_be_used(client, body, cause):
    response = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert is_problem(response, 422, cause), response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "cause"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/..%2f..%2fapp.py", 404, "not_found"),
        ("GET", "/page/../app.py", 404, "not_found"),
        ("GET", "/v1/search", 405, "method_not_allowed"),
        ("PUT", "/v1/search", 405, "method_not_allowed"),
        ("GET", "/v1/images/ffffffffffffffff", 404, "unknown_image"),
        ("GET", "/v1/images/%2fetc%2fpasswd", 404, "not_found"),
        ("GET", "/v1/images/a.b", 422, "invalid_request"),
        ("GET", "/v1/images/000000000000001d", 410, "gone"),
        ("POST", "/v1/search?weight=5", 422, "invalid_request"),
        ("POST", "/v1/search?language=xx", 422, "unknown_language"),
        ("POST", "/v1/search?task=sing", 422, "invalid_request"),
    ],
)
def test_requests_that_are_not_answered(client, method, path, status, cause):
    assert is_problem(client.request(method, path), status, cause)


def test_a_body_is_held_against_the_limit_by_its_header_and_while_it_arrives():
    client = client_of(limits=LimitSettings(body_megabytes=0.01))
    announced = client.post("/v1/search", content=b"a", headers=WAV | {"Content-Length": "10001"})
    assert is_problem(announced, 413, "too_many_bytes")
    num_read, sent = 0, []

    async def receive() -> dict:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"audio/wav")]  # no length
    scope = {"type": "http", "method": "POST", "path": "/v1/search", "query_string": b"", "headers": headers}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 413 and num_read <= 11


def test_a_bug_is_a_problem_document_and_stays_in_the_log(caplog):
    searcher = small_searcher()
    searcher.system.embed_text = lambda texts: 1 / 0
    response = client_of(searcher=searcher).post("/v1/search", json={"text": "image 3"})
    assert is_problem(response, 500, "internal_error") and "division" not in response.text


def test_a_search_that_takes_too_long_is_given_up():
    client = client_of(searcher=small_searcher(seconds=2.0), limits=LimitSettings(request_seconds=0.2))
    assert is_problem(client.post("/v1/search", content=spoken(1), headers=WAV), 504, "timeout")


def test_one_bad_recording_does_not_disturb_the_others_of_its_batch():
    engine = LocalEngine(small_searcher(seconds=0.2))
    app = build_app(engine, ServiceSettings(index="unused"))

    async def ask_all() -> list[int]:
        import httpx2

        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bodies = [spoken(1), spoken(2), sound_file(NOISE), spoken(3), spoken(2)]
            responses = [client.post("/v1/search", content=body, headers=WAV) for body in bodies]
            return [response.status_code for response in await asyncio.gather(*responses)]

    assert asyncio.run(ask_all()) == [200, 200, 422, 200, 200]
    assert max(engine.searcher.system.batches) >= 2, "those that came meanwhile share a pass"


# ---------------------------------------------------------------------- who may ask, and what is told


def test_with_a_token_nobody_else_may_ask():
    client = client_of(TOKEN)
    for path in ("/", "/v1/info", "/metrics", "/openapi.json"):
        refused = client.get(path)
        assert is_problem(refused, 401, "unauthorized") and refused.headers["www-authenticate"].startswith("Basic")
    for scheme in (f"Bearer {TOKEN}", "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()):
        assert client.get("/v1/info", headers={"Authorization": scheme}).status_code == 200
    for scheme in ("Bearer 0", "Basic !", "Bearer", f"Token {TOKEN}", f"Basic {TOKEN}"):
        assert client.get("/v1/info", headers={"Authorization": scheme}).status_code == 401
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200, "probes bring no token"


def test_without_a_token_only_localhost_is_answered(client):
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/info", headers={"Host": host}).status_code == 200
    for host in ("rebound.example:8000", "10.0.0.7", "localhost.evil.example", ""):
        assert is_problem(client.get("/v1/info", headers={"Host": host}), 421, "wrong_host")


def test_no_other_origin_is_let_in_and_the_page_takes_nothing_from_outside(client):
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (client.options("/v1/search", headers=preflight), client.get("/", headers=preflight)):
        assert not [name for name in response.headers if name.startswith("access-control")]
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_access_log_leaves_queries_out_unless_asked(caplog):
    caplog.set_level(logging.INFO, "brewclip.service.access")
    logging.getLogger("brewclip.service").propagate = True
    for logs in (False, True):
        caplog.clear()
        client_of(log_queries=logs).post("/v1/search?top=3", json={"text": "image 13"})
        client_of(log_queries=logs).get("/?q=image+13")
        (search, page) = (json.loads(record.message) for record in caplog.records)
        assert search["route"] == "/v1/search" and search["status"] == 200
        assert ("image 13" in json.dumps(search)) is logs and "13" not in json.dumps(page["route"])


def test_metrics_have_stages_batches_and_the_queue():
    client = client_of()
    client.post("/v1/search", content=spoken(7), headers=WAV)
    text = client.get("/metrics").text
    assert 'brewclip_requests_total{replica="0",route="/v1/search",status="200"} 1.0' in text
    assert 'brewclip_batch_size_bucket{le="1.0",replica="0"} 1.0' in text
    assert 'brewclip_searches_in_flight{replica="0"} 0.0' in text
    stages = set(re.findall(r'brewclip_stage_seconds_count{.*stage="(\w+)"', text))
    assert stages == {"decode", "queue", "whisper", "clip", "search", "total"}


def test_the_schema_describes_bodies_answers_and_problems(client):
    schema = client.get("/openapi.json").json()
    search = schema["paths"]["/v1/search"]["post"]
    assert {"audio/wav", "audio/flac", "image/*", "application/json"} <= set(search["requestBody"]["content"])
    assert {"200", "4XX", "429", "503"} <= set(search["responses"])
    names = schema["components"]["schemas"]
    assert {"TextQuery", "SearchResponse", "ProblemDocument"} <= set(names)
    missing = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(schema))) - set(names)
    assert not missing


def test_information_names_the_limits_and_no_path(client):
    info = client.get("/v1/info").json()
    assert info["limits"]["body_bytes"] == 25_000_000 and info["limits"]["speech_seconds"] == 60
    assert info["reads_text"] and info["hears_sound"] and info["index"]["images"] == 30
