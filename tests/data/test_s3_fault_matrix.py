"""Every operation of the storage in S3 meets every fault of a server, once and always; boto3 and HTTP are real.

The rules of what must come of it:
- A fault that may pass, once: the right result, and what was to be written is there as if nothing had happened.
- The same fault always: tried again within `retry_seconds`, then `StorageError` in one line; never wrong data.
- A refusal: one line that names the cause after a single request. A missing object: `ObjectMissing`, likewise.
- An unusual answer that is whole: the right result.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from brewclip.data import s3_client, s3_storage
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.s3_storage import S3Storage
from brewclip.data.storage import check_reachable, exists
from brewclip.errors import ObjectMissing, StorageError, UserError
from tests.data.fault_server import BUCKET, Answer, Connection, FaultServer, error_xml, with_length
from tests.data.splits import write_split

pytestmark = pytest.mark.slow

PASSING, ODD, REFUSED, MISSING = "may pass", "odd but whole", "refused", "missing"
SMALL, LARGE, OTHER = bytes(range(250)), bytes(range(256)) * 50, b"of another writer"
RETRY_SECONDS, MARGIN_SECONDS = 0.5, 0.2  # parts of a download pause side by side


class Fault(NamedTuple):
    """A fault, what it is, and the actions that can meet it; none means all."""

    kind: str
    send: Callable[[Connection], None]
    actions: str = ""
    text: str = ""


def refusal(status: int, code: str) -> Callable[[Connection], None]:
    return lambda connection: connection.refuse(status, code)


def answering(status: int, body: bytes) -> Callable[[Connection], None]:
    """Answer with a body that is not S3's, and do nothing."""
    return lambda connection: connection.answer(with_length(Answer(status, body)))


def changed(*, drop: str = "", **headers: str) -> Callable[[Connection], None]:
    """Do what was asked for, and answer with other headers; a connection without a length ends."""

    def send(connection: Connection) -> None:
        answer = connection.act()
        answer.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        answer.headers.pop(drop, None)
        connection.answer(answer)
        connection.close()

    return send


def cut(*, share: float, drop: str = "") -> Callable[[Connection], None]:
    """Do what was asked for, send a part of the body, and close."""

    def send(connection: Connection) -> None:
        answer = connection.act()
        answer.headers.pop(drop, None)
        connection.send(answer.head() + answer.body[: int(share * len(answer.body))])
        connection.close()

    return send


def lost(*, reset: bool) -> Callable[[Connection], None]:
    def send(connection: Connection) -> None:
        connection.act()
        connection.close(reset=reset)

    return send


def headers_cut(connection: Connection) -> None:
    connection.send(connection.act().head()[:20])
    connection.close()


def no_http(connection: Connection) -> None:
    connection.act()
    connection.send(b"\x16\x03\x01 not HTTP\r\n\r\n")
    connection.close()


def chunked(connection: Connection, end: bytes = b"0\r\n\r\n") -> None:
    answer = connection.act()
    del answer.headers["Content-Length"]
    answer.headers["Transfer-Encoding"] = "chunked"
    connection.send(answer.head() + b"%x\r\n%b\r\n" % (len(answer.body), answer.body) + end)
    if not end:
        connection.close()


def in_pieces(connection: Connection) -> None:
    answer = connection.act()
    data = answer.head() + (b"" if connection.handler.command == "HEAD" else answer.body)
    for start in range(0, len(data), 400):
        connection.send(data[start : start + 400])


def part_of_the_part(connection: Connection) -> None:
    answer = connection.act()
    place, _, size = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
    first = int(place.partition("-")[0])
    body = answer.body[: len(answer.body) // 2]
    headers = {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{size}"}
    connection.answer(with_length(Answer(206, body, headers)))


def whole_instead_of_part(connection: Connection) -> None:
    connection.handler.headers.replace_header("Range", "")
    connection.answer(connection.act())


def drip_headers(connection: Connection) -> None:
    connection.drip(connection.act().head() + b"x" * 100)


def drip_body(connection: Connection) -> None:
    answer = connection.act()
    connection.send(answer.head())
    connection.drip(answer.body)


WITH_BODY, XML = "get range list begin complete", "list begin complete"
FAULTS = {
    **{f"status-{status}": Fault(PASSING, refusal(status, "Busy")) for status in (408, 425, 429, 500, 502, 504)},
    "slow-down": Fault(PASSING, refusal(503, "SlowDown")),
    "html-503": Fault(PASSING, answering(503, b"<html>Service <br> unavailable")),
    "empty-500": Fault(PASSING, answering(500, b"")),
    "request-timeout": Fault(PASSING, refusal(400, "RequestTimeout"), "get range list put create part begin complete"),
    "code-of-two-lines": Fault(PASSING, refusal(500, "Internal\nError"), "get range list put create part begin"),
    "reset": Fault(PASSING, lambda connection: connection.close(reset=True)),
    "closed": Fault(PASSING, lambda connection: connection.close()),
    "answer-lost-by-reset": Fault(PASSING, lost(reset=True)),
    "answer-lost": Fault(PASSING, lost(reset=False)),
    "no-http": Fault(PASSING, no_http),
    "silence": Fault(PASSING, Connection.be_silent),
    "headers-drip": Fault(PASSING, drip_headers),
    "body-drips": Fault(PASSING, drip_body, WITH_BODY),
    "headers-cut": Fault(PASSING, headers_cut, "get range head list begin part"),
    "headers-cut-after-writing": Fault(ODD, headers_cut, "put create delete complete"),
    "body-short": Fault(PASSING, cut(share=0.6), WITH_BODY),
    "body-missing": Fault(PASSING, cut(share=0.0), "get range list begin"),
    "body-missing-after-writing": Fault(ODD, cut(share=0.0), "complete"),
    "body-short-without-length": Fault(PASSING, cut(share=0.6, drop="Content-Length"), WITH_BODY),
    "body-without-length": Fault(PASSING, changed(drop="Content-Length"), "get"),
    "size-missing": Fault(PASSING, changed(drop="Content-Length"), "head"),
    "length-no-number": Fault(PASSING, changed(Content_Length="many"), "get range head"),
    "chunks-cut": Fault(PASSING, lambda connection: chunked(connection, b""), "get range list"),
    "chunked": Fault(ODD, chunked, WITH_BODY),
    "in-pieces": Fault(ODD, in_pieces),
    "error-in-200": Fault(PASSING, answering(200, error_xml("InternalError")), XML),
    "html-in-200": Fault(PASSING, answering(200, b"<html>Log in <br> first"), XML),
    "nothing-in-200": Fault(PASSING, answering(200, b""), "list begin"),
    "content-range-missing": Fault(PASSING, changed(drop="Content-Range"), "range"),
    "content-range-of-another": Fault(PASSING, changed(Content_Range="bytes 7-11/90000"), "range"),
    "content-range-without-size": Fault(PASSING, changed(Content_Range="bytes 0-9/*"), "range"),
    "content-range-nonsense": Fault(PASSING, changed(Content_Range="some of it"), "range"),
    "part-of-the-part": Fault(PASSING, part_of_the_part, "range"),
    "whole-instead-of-part": Fault(PASSING, whole_instead_of_part, "range"),
    "range-refused": Fault(PASSING, refusal(416, "InvalidRange"), "range"),
    "no-such-key": Fault(MISSING, refusal(404, "NoSuchKey"), "get range head"),
    "no-such-bucket": Fault(
        REFUSED, refusal(404, "NoSuchBucket"), "get range list put create part begin complete delete", "does not exist"
    ),
    "access-denied": Fault(REFUSED, refusal(403, "AccessDenied"), text="S3 refuses the key"),
    "wrong-signature": Fault(REFUSED, refusal(403, "SignatureDoesNotMatch"), text="S3 refuses the key"),
    "not-authorized": Fault(REFUSED, refusal(401, "Unauthorized"), text="S3 refuses the key"),
    "clock-differs": Fault(REFUSED, refusal(403, "RequestTimeTooSkewed"), "get range list put delete", "set the clock"),
    "expired-token": Fault(REFUSED, refusal(400, "ExpiredToken"), text="S3 answers 400"),
    "not-implemented-here": Fault(REFUSED, refusal(405, "MethodNotAllowed"), text="S3 answers 405"),
}
SLOW = ("silence", "headers-drip", "body-drips")
OF_A_SORT = (*SLOW, *(f"status-{status}" for status in (408, 425, 429, 502, 504)), "html-503", "empty-500", "closed")
OF_A_SORT += ("request-timeout", "code-of-two-lines", "no-http", "wrong-signature", "not-authorized", "expired-token")


@dataclass
class Place:
    """What an operation works on."""

    server: FaultServer
    folder: Path
    split: Manifest

    def storage(self, retry_seconds: float) -> S3Storage:
        return S3Storage(BUCKET, "some/prefix", retry_seconds)


class Operation(NamedTuple):
    """An operation, the requests that meet the fault, its right result, and what it writes.

    Attributes:
        run: takes the storage and the place.
        plain: the right answer is an error or has nothing to cut.
        alike: like an operation of the same requests, so one of each sort of faults is enough.
        if_missing: what comes of an object that does not exist.
    """

    action: str
    run: Callable[[S3Storage, Place], Any]
    right: Any
    writes: dict[str, bytes | None] = {}  # noqa: RUF012
    skip: int = 0
    plain: bool = False
    alike: bool = False
    if_missing: Any = ObjectMissing


def upload(storage: S3Storage, place: Place, data: bytes) -> None:
    path = place.folder / "local"
    path.write_bytes(data)
    storage.upload(path, "new")


def download(storage: S3Storage, place: Place, name: str) -> bytes:
    path = place.folder / "local"
    path.unlink(missing_ok=True)
    try:
        storage.download(name, path)
    except UserError:
        assert not path.exists()
        raise
    finally:
        assert not [other for other in place.folder.iterdir() if other != path]
    return path.read_bytes()


def upload_large(action: str, **more: Any) -> Operation:
    return Operation(action, lambda storage, place: upload(storage, place, LARGE), None, {"new": LARGE}, **more)


def downloading(name: str, right: bytes, **more: Any) -> Operation:
    return Operation("range", lambda storage, place: download(storage, place, name), right, **more)


def open_split(storage: S3Storage, place: Place) -> str:
    return open_manifest(f"s3://{BUCKET}/split", retry_seconds=storage.retry_seconds).summary.shards_sha256


def read_samples(storage: S3Storage, place: Place) -> list[bytes]:
    place.split.storage = S3Storage(BUCKET, "split", storage.retry_seconds)
    return [bytes(sample) for sample in SplitReader(place.split).read(Extent(0, 1, 2))]


NAMES = ["a/large", "a/small", "b/one", "b/two", "c"]
OPERATIONS = {
    "read": Operation("get", lambda storage, _: storage.read("a/large"), LARGE),
    "read-range": Operation("range", lambda storage, _: storage.read_range("a/large", 10, 700), LARGE[10:700]),
    "read-part": Operation(
        "range", lambda storage, _: storage.read_part("a/small", 99, 999), (SMALL[99:], 250), alike=True
    ),
    "read-past-the-end": Operation(
        "range", lambda storage, _: storage.read_range("a/small", 500, 600), b"", plain=True
    ),
    "read-past-the-end-size": Operation(
        "head", lambda storage, _: storage.read_part("a/small", 500, 600), (b"", 250), alike=True
    ),
    "size": Operation("head", lambda storage, _: storage.size("a/large"), len(LARGE)),
    "exists": Operation("head", lambda storage, _: exists(storage, "c"), True, alike=True, if_missing=False),
    "list-names": Operation("list", lambda storage, _: storage.list_names(), NAMES),
    "list-names-second-page": Operation("list", lambda storage, _: storage.list_names(), NAMES, skip=1, alike=True),
    "list-folders": Operation("list", lambda storage, _: storage.list_folders(), ["a", "b"], alike=True),
    "check-reachable": Operation("list", lambda storage, _: check_reachable(storage.url), None, alike=True),
    "write": Operation("put", lambda storage, _: storage.write("new", LARGE), None, {"new": LARGE}),
    "write-over": Operation("put", lambda storage, _: storage.write("c", SMALL), None, {"c": SMALL}, alike=True),
    "create": Operation("create", lambda storage, _: storage.create("new", SMALL), True, {"new": SMALL}),
    "create-what-exists": Operation(
        "create", lambda storage, _: storage.create("c", SMALL), False, plain=True, alike=True
    ),
    "upload": Operation("put", lambda storage, place: upload(storage, place, SMALL), None, {"new": SMALL}),
    "upload-begin": upload_large("begin", alike=True),
    "upload-part": upload_large("part", alike=True),
    "upload-complete": upload_large("complete"),
    "upload-check": upload_large("head", alike=True, if_missing=PASSING),
    "download": downloading("a/small", SMALL, alike=True),
    "download-first-part": downloading("a/large", LARGE),
    "download-later-part": downloading("a/large", LARGE, skip=1, alike=True),
    "delete": Operation("delete", lambda storage, _: storage.delete("c"), None, {"c": None}),
    "delete-what-is-missing": Operation("delete", lambda storage, _: storage.delete("never"), None, alike=True),
    "open-manifest": Operation("range", open_split, None, alike=True, if_missing=UserError),
    "read-samples": Operation("range", read_samples, None, alike=True, if_missing=UserError),
}


def meets(operation: Operation, name: str, fault: Fault) -> bool:
    """Return whether a fault can happen to an operation, and is not tried with the same requests already."""
    if operation.alike and name in OF_A_SORT:
        return False
    return not fault.actions or (operation.action in fault.actions.split() and not operation.plain)


CASES = [
    (operation, fault, times)
    for operation, fault in itertools.product(OPERATIONS, FAULTS)
    for times in ("once", "always")
    if FAULTS[fault].kind == PASSING or times == "always"  # others are one request
    if meets(OPERATIONS[operation], fault, FAULTS[fault])
]


class Clock:
    """A time in which only pauses pass, and they take none."""

    def __init__(self) -> None:
        self.paused_seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.paused_seconds += seconds

    def monotonic(self) -> float:
        return self.paused_seconds


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as server, pytest.MonkeyPatch.context() as patch:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.delenv("AWS_PROFILE", raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "of-the-test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # Parts of this size keep the objects small; uploads have larger ones, as S3 asks for.
        patch.setattr(s3_storage, "_PART_BYTES", 5000)
        patch.setattr(s3_client, "SLOWEST_BYTES", 100)
        yield server
        server.shutdown()
        thread.join()
    s3_client._client_of.cache_clear()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Manifest]:
    """Objects of a small split, and its manifest."""
    folder = tmp_path_factory.mktemp("split")
    manifest = write_split(folder.as_uri(), [[4]])
    return {f"split/{name}": manifest.storage.read(name) for name in manifest.storage.list_names()}, manifest


@pytest.fixture
def place(server: FaultServer, split: tuple[dict[str, bytes], Manifest], tmp_path: Path) -> Place:
    contents = {"a/large": LARGE, "a/small": SMALL, "b/one": b"1", "b/two": b"2", "c": OTHER}
    server.reset({f"some/prefix/{name}": data for name, data in contents.items()} | split[0])
    return Place(server, tmp_path, split[1])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(s3_storage, "time", clock)
    return clock


def objects_after(before: dict[str, bytes], operation: Operation) -> dict[str, bytes]:
    """Return what the server holds when an operation was done once."""
    after = before | {f"some/prefix/{name}": data for name, data in operation.writes.items()}
    return {name: data for name, data in after.items() if data is not None}


def right_result(name: str, place: Place) -> Any:
    if name == "open-manifest":
        return place.split.summary.shards_sha256
    if name == "read-samples":
        offsets = place.split.index_of(0)[0]
        shard = place.server.objects[f"split/{place.split.place_of(0)[1]}"]
        return [shard[offsets[number] : offsets[number + 1]] for number in (1, 2)]
    return OPERATIONS[name].right


def make_slow_faults_short(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Shorten the limits for a fault that takes time."""
    if fault == "silence":
        monkeypatch.setattr(s3_client, "SILENT_SECONDS", 0.06)
        monkeypatch.setenv("AWS_CLIENT_OF", "the silent server")  # the client is made anew
    else:
        monkeypatch.setattr(s3_client, "SLOWEST_SECONDS", 0.06)
        monkeypatch.setattr(s3_client, "COMPLETION_SECONDS", 0.06)


@pytest.mark.parametrize(("name", "fault_name", "times"), CASES, ids=["-".join(case) for case in CASES])
def test_a_fault(name: str, fault_name: str, times: str, place: Place, clock: Clock, monkeypatch) -> None:
    operation, fault, server = OPERATIONS[name], FAULTS[fault_name], place.server
    right, before = right_result(name, place), dict(server.objects)
    after = objects_after(before, operation)
    retry_seconds = 60.0 if times == "once" else RETRY_SECONDS
    if fault_name in SLOW:
        make_slow_faults_short(monkeypatch, fault_name)
        retry_seconds /= 2.5  # two tries
    always = float("inf") if times == "always" else 1
    server.inject(fault.send, operation.action, times=always, skip=operation.skip)

    def run() -> Any:
        return operation.run(place.storage(retry_seconds), place)

    kind = PASSING if (fault.kind, operation.if_missing) == (MISSING, PASSING) else fault.kind
    if kind == ODD or (kind == PASSING and times == "once"):
        assert run() == right
        assert server.objects == after
    elif kind == PASSING:
        with pytest.raises(StorageError) as caught:
            run()
        assert not isinstance(caught.value, ObjectMissing)
        assert_one_line(caught.value)
        assert 0 < clock.paused_seconds <= (3.0 if name == "check-reachable" else retry_seconds) + MARGIN_SECONDS
        assert server.objects in (before, after)
    else:
        assert_refused_at_once(run, operation, fault)
        assert clock.paused_seconds == 0.0
        assert server.objects in (before, after)
    assert server.met >= 1


def assert_one_line(error: UserError) -> None:
    assert "\n" not in str(error)
    assert "://" in str(error)


def assert_refused_at_once(run: Callable[[], Any], operation: Operation, fault: Fault) -> None:
    if fault.kind == MISSING and not isinstance(operation.if_missing, type):
        assert run() == operation.if_missing
        return
    expected = operation.if_missing if fault.kind == MISSING else StorageError
    with pytest.raises(expected, match=fault.text or "does not exist|is missing") as caught:
        run()
    assert_one_line(caught.value)


def test_there_are_cases_of_every_kind() -> None:
    counts = Counter(f"{FAULTS[fault].kind}, {times}" for _, fault, times in CASES)
    print(f"{len(CASES)} cases of {len(OPERATIONS)} operations and {len(FAULTS)} faults: {dict(counts)}")
    assert len(CASES) >= 300
    assert {operation for operation, _, _ in CASES} == set(OPERATIONS)
    assert {fault for _, fault, _ in CASES} == set(FAULTS)
