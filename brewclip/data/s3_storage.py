"""Storage in an S3 bucket (s3://), through boto3.

Reads and writes survive outages: they are retried with growing, jittered pauses until `retry_seconds` have passed.
Credentials come from botocore's chain, which renews them; they are never stored or printed here.
"""

import contextlib
import functools
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from brewclip.config.masking import without_secrets
from brewclip.errors import ObjectMissing, StorageError

Answer = TypeVar("Answer")
_LONGEST_PAUSE_SECONDS = 5.0
# A response of fewer bytes than this in the time is abandoned and requested again.
_SLOWEST_BYTES, _SLOWEST_SECONDS = 30_000, 30.0
_READ_BYTES = 2**14
_LARGEST_UNWATCHED_BYTES = 2**16
_PASSING_STATUS = frozenset((408, 425, 429))


class _Unfinished(Exception):
    """A response that is too slow, too short or without its range; it is requested again."""


class _BeyondTheEnd(StorageError):
    """A byte range that begins where the object has already ended."""


class S3Storage:
    """Objects below a prefix of a bucket; safe to use from many threads, and picklable."""

    def __init__(self, bucket: str, prefix: str, retry_seconds: float) -> None:
        self.bucket, self.prefix, self.retry_seconds = bucket, prefix, retry_seconds
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, name: str) -> bytes:
        return self._call(name, lambda: _body_of(self._get(name)))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        part = self._read_part(name, start, stop)
        return part[0] if part else b""

    def read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        return self._read_part(name, start, stop) or (b"", self.size(name))

    def _read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int] | None:
        """Return bytes and the object's size; None where there are no such bytes, which S3 answers without the size."""

        def get() -> tuple[bytes, int]:
            answer = self._get(name, Range=f"bytes={start}-{stop - 1}")
            if "ContentRange" not in answer:
                raise _Unfinished("the answer does not say which range it is")
            return _body_of(answer), int(answer["ContentRange"].rpartition("/")[2])

        if stop <= start:
            return None
        try:
            return self._call(name, get)
        except _BeyondTheEnd:
            return None

    def size(self, name: str) -> int:
        head = self._call(name, lambda: _client().head_object(Bucket=self.bucket, Key=self._key(name)))
        return int(head["ContentLength"])

    def write(self, name: str, data: bytes) -> None:
        self._call(name, lambda: _client().put_object(Bucket=self.bucket, Key=self._key(name), Body=data))

    def create(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        def put() -> bool:
            try:
                _client().put_object(Bucket=self.bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                    return False  # there is one, or one is being written
                raise
            return True

        return self._call(name, put)

    def upload(self, path: Path, name: str) -> None:
        self._call(name, lambda: _client().upload_file(str(path), self.bucket, self._key(name)))

    def download(self, name: str, path: Path) -> None:
        self._call(name, lambda: _client().download_file(self.bucket, self._key(name), str(path)))

    def list_names(self, prefix: str = "") -> list[str]:
        def all_pages() -> list[str]:
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            return [item["Key"] for page in pages for item in page.get("Contents", [])]

        start = len(self.prefix) + 1 if self.prefix else 0
        return sorted(key[start:] for key in self._call(prefix, all_pages))

    def list_folders(self) -> list[str]:
        prefix = self._key("")

        def all_pages() -> list[str]:
            paginator = _client().get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            return [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]

        return sorted(folder[len(prefix) :].rstrip("/") for folder in self._call("", all_pages))

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing):
            self._call(name, lambda: _client().delete_object(Bucket=self.bucket, Key=self._key(name)))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _get(self, name: str, **options: str) -> Any:
        return _client().get_object(Bucket=self.bucket, Key=self._key(name), **options)

    def _call(self, name: str, operation: Callable[[], Answer]) -> Answer:
        """Run one operation, repeated with growing pauses while the failure may pass."""
        deadline = time.monotonic() + self.retry_seconds
        pause = 0.1
        while True:
            try:
                return operation()
            except Exception as error:
                problem, may_pass = _explain(error, f"{self.url}/{name}")
                if problem is None:
                    raise
                if not may_pass or time.monotonic() + pause > deadline:
                    raise problem from error
            if pause >= 1.0:
                line = without_secrets(str(problem))
                print(f"storage: {line}; next try in {pause:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@functools.lru_cache(maxsize=8)
def _client_of(process_id: int, variables: frozenset[tuple[str, str]]) -> Any:
    """One client for a process, as it must not cross a fork, and for what the environment says of S3."""
    import boto3
    from botocore.config import Config

    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it logs where it found the credentials
    return boto3.session.Session().client(  # own session: boto3's default one caches what it read first
        "s3",
        config=Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"total_max_attempts": 1},
            max_pool_connections=64,
            response_checksum_validation=os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
            request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
        ),
    )


def _client() -> Any:
    return _client_of(os.getpid(), frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))


def _explain(error: Exception, url: str) -> tuple[StorageError | None, bool]:
    """Convert an error of boto3 to one line, and return whether it may pass; None if it is not storage's."""
    import botocore.exceptions as aws
    from boto3.exceptions import S3UploadFailedError
    from urllib3.exceptions import HTTPError

    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        return _explain(error.__context__, url)
    if isinstance(error, aws.ClientError):
        return _explain_refusal(error, url)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageError(f"{url}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), False
    if isinstance(error, aws.ParamValidationError | aws.InvalidEndpointDiscoveryConfigurationError):
        return StorageError(f"{url}: not a valid S3 name: {error}"), False
    if isinstance(error, _Unfinished):
        return StorageError(f"{url}: {error}"), True
    if isinstance(error, aws.BotoCoreError | ConnectionError | TimeoutError | HTTPException | HTTPError):
        where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the S3 service"
        return StorageError(f"{url}: {where} cannot be reached ({type(error).__name__}): is it running?"), True
    return None, False


def _body_of(answer: Any) -> bytes:
    """Read the body of an answer; botocore notices one that is shorter than its length.

    Raises:
        _Unfinished: if fewer than `_SLOWEST_BYTES` come in `_SLOWEST_SECONDS`.
    """
    body = answer["Body"]
    if int(answer.get("ContentLength", _LARGEST_UNWATCHED_BYTES + 1)) <= _LARGEST_UNWATCHED_BYTES:
        return bytes(body.read())
    parts, since, mark = [], 0, time.monotonic()
    while part := body.read(_READ_BYTES if since < _SLOWEST_BYTES else 2**20):
        parts.append(part)
        since += len(part)
        if time.monotonic() - mark > _SLOWEST_SECONDS:
            if since < _SLOWEST_BYTES:
                raise _Unfinished(f"fewer than {_SLOWEST_BYTES} bytes came in {_SLOWEST_SECONDS:.0f} s")
            since, mark = 0, time.monotonic()
    return b"".join(parts)


def _explain_refusal(error: Any, url: str) -> tuple[StorageError, bool]:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    bucket = urlparse(url).netloc
    if code == "NoSuchBucket":
        return StorageError(f"{url}: bucket {bucket!r} does not exist: create it or correct --storage"), False
    if code in ("NoSuchKey", "404", "NotFound"):
        return ObjectMissing(f"{url} does not exist"), False
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch") or status in (401, 403):
        return StorageError(f"{url}: S3 refuses the key ({code}): check AWS_ACCESS_KEY_ID and its rights"), False
    if code == "InvalidRange" or status == 416:
        return _BeyondTheEnd(f"{url} ends before the requested range"), False
    passing = (
        status >= 500
        or status in _PASSING_STATUS
        or code in ("SlowDown", "RequestTimeout", "Throttling", "RequestTimeTooSkewed")
    )
    return StorageError(f"{url}: S3 answers {status} {code}"), passing
