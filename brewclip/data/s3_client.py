"""The boto3 client of a process, with limits on the time that a connection, an answer and each part of it may take.

boto3 limits the pause between two bytes, not the total time of a slow response. Here a response, headers included, is
aborted below a minimum rate.
"""

import functools
import http.client
import io
import logging
import os
import time
from typing import Any

CONNECT_SECONDS, SILENT_SECONDS = 5.0, 30.0
# An answer of which fewer bytes than this come in the time is given up.
SLOWEST_BYTES, SLOWEST_SECONDS = 30_000, 30.0
# S3 may need minutes to complete an upload of many parts, and sends a space now and then meanwhile.
COMPLETION_SECONDS = 600.0


def s3_client() -> Any:
    """Return the client of this process for what the environment says of S3 now."""
    return _client_of(os.getpid(), frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))


@functools.lru_cache(maxsize=8)
def _client_of(process_id: int, variables: frozenset[tuple[str, str]]) -> Any:
    """One client for a process, as it must not cross a fork, and for what the environment says of S3."""
    import boto3
    from botocore.config import Config

    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it logs where it found the credentials
    client = boto3.session.Session().client(  # own session: boto3's default one caches what it read first
        "s3",
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SILENT_SECONDS,
            retries={"total_max_attempts": 1},
            max_pool_connections=64,
            response_checksum_validation=os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
            request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
        ),
    )
    # botocore has no setting for the class of its connections. A version that keeps it elsewhere works without the
    # watch; tests/data/test_s3_fault_matrix.py finds that out.
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    getattr(session, "_pool_classes_by_scheme", {}).update(_watched_pools())
    return client


def _watched_pools() -> dict[str, type]:
    """Return botocore's pools of connections, with answers that are watched."""
    from botocore import awsrequest

    class Connection(awsrequest.AWSHTTPConnection):
        response_class = _WatchedResponse

    class SecureConnection(awsrequest.AWSHTTPSConnection):
        response_class = _WatchedResponse

    class Pool(awsrequest.AWSHTTPConnectionPool):
        ConnectionCls = Connection

    class SecurePool(awsrequest.AWSHTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": Pool, "https": SecurePool}


class _WatchedResponse(http.client.HTTPResponse):
    """An answer that is read through a `_WatchedStream`, and whose length is a number."""

    def __init__(self, sock: Any, debuglevel: int = 0, method: str | None = None, url: str | None = None) -> None:
        super().__init__(sock, debuglevel, method, url)
        limit = COMPLETION_SECONDS if method == "POST" else SLOWEST_SECONDS
        raw: Any = self.fp.detach()  # of the socket
        self.fp = io.BufferedReader(_WatchedStream(raw, limit))

    def begin(self) -> None:
        super().begin()
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit():  # botocore would raise a plain ValueError
            raise http.client.HTTPException(f"Content-Length is {length!r}")


class _WatchedStream(io.RawIOBase):
    """Bytes of a socket, given up where fewer than `SLOWEST_BYTES` come in a time; only waiting for them counts."""

    def __init__(self, stream: io.RawIOBase, limit_seconds: float) -> None:
        self._stream, self._limit_seconds = stream, limit_seconds
        self._num_bytes, self._waited_seconds = 0, 0.0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def readinto(self, buffer: Any) -> int | None:
        start = time.monotonic()
        count: int | None = self._stream.readinto(buffer)
        self._waited_seconds += time.monotonic() - start
        self._num_bytes += count or 0
        if self._waited_seconds > self._limit_seconds:
            if count and self._num_bytes < SLOWEST_BYTES:
                raise TimeoutError(f"fewer than {SLOWEST_BYTES} bytes came in {self._limit_seconds:.0f} s")
            self._num_bytes, self._waited_seconds = 0, 0.0
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()
