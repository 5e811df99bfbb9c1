"""An S3 server on loopback that keeps objects in memory and answers some requests wrongly, as it is told."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
_PAGE_KEYS = 3
_DRIP_SECONDS, _LONGEST_SECONDS = 0.01, 0.6


@dataclass
class Answer:
    """An answer as it should be; a fault changes it or sends something else."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def head(self) -> bytes:
        """Return the status line and the headers."""
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Connection:
    """What a fault can do to the request that it meets.

    Args:
        handler: of the request.
        act: does what the request asks for, and returns the right answer.
    """

    def __init__(self, handler: "Handler", act: Callable[[], Answer]) -> None:
        self.handler, self.act = handler, act

    def send(self, data: bytes) -> None:
        """Send bytes at once."""
        self.handler.connection.sendall(data)

    def answer(self, answer: Answer) -> None:
        """Send an answer; one to HEAD has no body."""
        self.send(answer.head() + (b"" if self.handler.command == "HEAD" else answer.body))

    def refuse(self, status: int, code: str) -> None:
        """Send an error as S3 does."""
        self.answer(with_length(Answer(status, error_xml(code))))

    def close(self, *, reset: bool = False) -> None:
        """End the connection after this request."""
        if reset:
            self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.close_connection = True

    def drip(self, data: bytes) -> None:
        """Send one byte at a time, slowly, and close before the end."""
        for byte in data[: int(_LONGEST_SECONDS / _DRIP_SECONDS)]:
            self.send(bytes([byte]))
            time.sleep(_DRIP_SECONDS)
        self.close()

    def be_silent(self) -> None:
        """Send nothing for longer than the client waits."""
        time.sleep(_LONGEST_SECONDS)
        self.close()


Fault = Callable[[Connection], None]


class FaultServer(ThreadingHTTPServer):
    """The server; `objects` are what it holds, by key.

    Attributes:
        action: the requests that the fault meets: get, range (a get of a part), head, list, put, create, part, begin,
            complete (of an upload in parts) or delete.
        skip: how many of them are answered well first.
        left: how many of them meet the fault.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.reset()

    @property
    def endpoint_url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reset(self, objects: dict[str, bytes] | None = None) -> None:
        """Forget everything, and hold these objects."""
        self.objects: dict[str, bytes] = dict(objects or {})
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.fault: Fault | None = None
        self.action, self.skip, self.left, self.met = "", 0, 0.0, 0

    def inject(self, fault: Fault, action: str, *, times: float, skip: int = 0) -> None:
        """Meet the next requests of an action with a fault."""
        self.fault, self.action, self.left, self.skip = fault, action, times, skip

    def fault_for(self, action: str) -> Fault | None:
        """Return the fault that a request meets."""
        with self.lock:
            if action != self.action or self.left <= 0:
                return None
            if self.skip:
                self.skip -= 1
                return None
            self.left -= 1
            self.met += 1
            return self.fault

    def shutdown_request(self, request: object) -> None:
        """Close without a farewell, which would come before a reset."""
        self.close_request(request)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about a client that has gone."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultServer

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def handle_any(self) -> None:
        """Answer a request, or let a fault do it."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        connection = Connection(self, lambda: with_length(self.act(key, query, data)))
        fault = self.server.fault_for(self.action_of(query))
        with contextlib.suppress(OSError):
            if bucket != BUCKET:
                connection.refuse(404, "NoSuchBucket")
            elif fault is None:
                connection.answer(connection.act())
            else:
                fault(connection)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def action_of(self, query: dict[str, str]) -> str:
        """Return the action of a request, see `FaultServer`."""
        if self.command == "POST":
            return "begin" if "uploads" in query else "complete"
        if self.command == "PUT":
            return "part" if "partNumber" in query else "create" if "If-None-Match" in self.headers else "put"
        if self.command == "GET":
            return "list" if "list-type" in query else "range" if "Range" in self.headers else "get"
        return self.command.lower()

    def act(self, key: str, query: dict[str, str], data: bytes) -> Answer:
        """Do what a request asks for, and return the answer."""
        action, objects = self.action_of(query), self.server.objects
        with self.server.lock:
            if action == "list":
                return Answer(body=list_xml(sorted(objects), query))
            if action in ("put", "create"):
                if action == "create" and key in objects:
                    return Answer(412, error_xml("PreconditionFailed"))
                objects[key] = data
                return Answer(headers={"ETag": '"tag"'})
            if action in ("begin", "part", "complete"):
                return self.act_on_upload(action, key, query, data)
            if action == "delete":
                (self.server.uploads if "uploadId" in query else objects).pop(query.get("uploadId", key), None)
                return Answer(204)
            if key not in objects:
                return Answer(404, error_xml("NoSuchKey"))
            return part_of(objects[key], self.headers.get("Range", ""))

    def act_on_upload(self, action: str, key: str, query: dict[str, str], data: bytes) -> Answer:
        """Do one step of an upload in parts."""
        uploads = self.server.uploads
        if action == "begin":
            identity = f"upload{len(uploads)}"
            uploads[identity] = {}
            fields = f"<Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><UploadId>{identity}</UploadId>"
            return Answer(body=xml("InitiateMultipartUploadResult", fields))
        if query["uploadId"] not in uploads:
            return Answer(404, error_xml("NoSuchUpload"))
        if action == "part":
            uploads[query["uploadId"]][int(query["partNumber"])] = data
            return Answer(headers={"ETag": '"tag"'})
        parts = uploads.pop(query["uploadId"])
        self.server.objects[key] = b"".join(part for _, part in sorted(parts.items()))
        fields = f"<Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><ETag>tag</ETag>"
        return Answer(body=xml("CompleteMultipartUploadResult", fields))


def with_length(answer: Answer) -> Answer:
    """Return the answer with its length among the headers."""
    answer.headers.setdefault("Content-Length", str(len(answer.body)))
    return answer


def part_of(data: bytes, wanted: str) -> Answer:
    """Return an object, or the part of it that a header asks for."""
    headers = {"ETag": '"tag"', "Content-Type": "binary/octet-stream"}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if match is None:
        return Answer(200, data, headers)
    start, stop = int(match[1]), min(len(data), int(match[2] or len(data)) + 1)
    if start >= len(data):
        return Answer(416, error_xml("InvalidRange"))
    return Answer(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def list_xml(keys: list[str], query: dict[str, str]) -> bytes:
    """Return one page of keys below a prefix, with folders where a delimiter is given."""
    prefix, delimiter, after = query.get("prefix", ""), query.get("delimiter", ""), query.get("continuation-token", "")
    found = [key for key in keys if key.startswith(prefix)]
    if delimiter:
        rests = {key[len(prefix) :].partition(delimiter)[0] for key in found if delimiter in key[len(prefix) :]}
        found = sorted(f"{prefix}{rest}{delimiter}" for rest in rests)
    found = [key for key in found if key > after]
    page = found[:_PAGE_KEYS]
    fields = f"<Name>{BUCKET}</Name><IsTruncated>{str(len(found) > len(page)).lower()}</IsTruncated>"
    if len(found) > len(page):
        fields += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
    for key in page:
        entry = f"<Key>{escape(key)}</Key><Size>1</Size>" if not delimiter else f"<Prefix>{escape(key)}</Prefix>"
        fields += f"<Contents>{entry}</Contents>" if not delimiter else f"<CommonPrefixes>{entry}</CommonPrefixes>"
    return xml("ListBucketResult", fields)


def error_xml(code: str) -> bytes:
    """Return an error as S3 writes it."""
    return xml("Error", f"<Code>{escape(code)}</Code><Message>of the\ntest</Message>")


def xml(name: str, fields: str) -> bytes:
    """Return a document of one element."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{fields}</{name}>'.encode()
