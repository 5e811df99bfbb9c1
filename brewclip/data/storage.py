"""Object storage behind one small interface: s3://bucket/prefix through boto3, file:///folder on disk.

Every object is written whole or not at all. Reads and writes outlive outages: they are repeated with growing,
jittered pauses until `retry_seconds` have passed. Credentials come from botocore's chain, which renews them;
they are never stored or printed here.
"""

import contextlib
import functools
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote, urlparse

from brewclip.errors import ObjectMissing, StorageError

Answer = TypeVar("Answer")
_LONGEST_PAUSE_SECONDS = 5.0


class _BeyondTheEnd(StorageError):
    """A byte range that begins where the object has already ended."""


class Storage(Protocol):
    """Objects below one base URL; names are relative, with forward slashes."""

    url: str

    def read(self, name: str) -> bytes:
        """Return the whole object; raises `ObjectMissing`."""

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes start..stop (exclusive); shorter where the object ends; raises `ObjectMissing`."""

    def read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        """Return the bytes as `read_range` does, and the size in bytes of the whole object, in one request."""

    def size(self, name: str) -> int:
        """Return the size in bytes; raises `ObjectMissing`."""

    def write(self, name: str, data: bytes) -> None:
        """Write the object whole."""

    def create(self, name: str, data: bytes) -> bool:
        """Write the object unless there is one of that name; return whether it was written.

        Of several writers one succeeds, on a disk and on S3 that knows `If-None-Match`. A server that ignores the
        condition (rclone's) takes each of them, and the last one stays.
        """

    def upload(self, path: Path, name: str) -> None:
        """Write a local file as an object, whole."""

    def download(self, name: str, path: Path) -> None:
        """Copy an object to a local file, whole."""

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the names that begin with the prefix, sorted."""

    def list_folders(self) -> list[str]:
        """Return the folders right below the URL, sorted, without what is in them."""

    def delete(self, name: str) -> None:
        """Remove the object; one that is missing is no error."""


def open_storage(url: str, *, retry_seconds: float = 180.0) -> "Storage":
    """Return the storage at a URL.

    Args:
        url: `s3://bucket[/prefix]` or `file:///folder`.
        retry_seconds: how long an outage may last before an operation fails.

    Raises:
        StorageError: if the URL is of neither form.
    """
    parts = urlparse(url)
    if parts.scheme == "s3" and parts.netloc:
        return S3Storage(parts.netloc, parts.path.strip("/"), retry_seconds)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FolderStorage(Path(unquote(parts.path)))
    raise StorageError(f"storage URL {url!r} must be s3://bucket[/prefix] or file:///folder")


def exists(storage: Storage, name: str) -> bool:
    """Return whether the object is there."""
    try:
        storage.size(name)
    except ObjectMissing:
        return False
    return True


def check_reachable(url: str) -> None:
    """Find a missing bucket, a wrong key or an unreachable server at once, without long retries.

    Raises:
        StorageError: one line with the cause.
    """
    open_storage(url, retry_seconds=3.0).list_names("a-name-that-need-not-exist")


class FolderStorage:
    """Objects as files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder.as_uri()

    def read(self, name: str) -> bytes:
        with self._named(name):
            return (self.folder / name).read_bytes()

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        return self.read_part(name, start, stop)[0]

    def read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        with self._named(name), open(self.folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            # Asked for more than there is, Python would first take memory for all of it.
            return file.read(max(0, min(stop, size) - start)), size

    def size(self, name: str) -> int:
        with self._named(name):
            return (self.folder / name).stat().st_size

    def write(self, name: str, data: bytes) -> None:
        with self._replacing(name) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            with self._replacing(name, put=os.link) as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def upload(self, path: Path, name: str) -> None:
        with self._replacing(name) as target, open(path, "rb") as source:
            shutil.copyfileobj(source, target, 2**20)

    def download(self, name: str, path: Path) -> None:
        with self._named(name):
            shutil.copyfile(self.folder / name, path)

    def list_names(self, prefix: str = "") -> list[str]:
        top = self.folder / prefix.rpartition("/")[0]
        files = (path for path in top.rglob("*") if path.is_file() and not path.name.startswith(".partial-"))
        names = (path.relative_to(self.folder).as_posix() for path in files)
        return sorted(name for name in names if name.startswith(prefix))

    def list_folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir()) if self.folder.is_dir() else []

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ObjectMissing(f"{self.url}/{name} does not exist") from None
        except PermissionError as error:
            raise StorageError(f"{self.url}/{name}: {error.strerror}") from None

    @contextlib.contextmanager
    def _replacing(self, name: str, put: Callable[[str, Path], None] = os.replace) -> Iterator[BinaryIO]:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        except OSError as error:
            raise StorageError(f"{self.url}/{name} cannot be written: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put(partial, path)
        except FileExistsError:
            raise
        except OSError as error:
            raise StorageError(f"{self.url}/{name} cannot be written: {error.strerror}") from None
        finally:
            Path(partial).unlink(missing_ok=True)


class S3Storage:
    """Objects below a prefix of a bucket; safe to use from many threads, and picklable."""

    def __init__(self, bucket: str, prefix: str, retry_seconds: float) -> None:
        self.bucket, self.prefix, self.retry_seconds = bucket, prefix, retry_seconds
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, name: str) -> bytes:
        return self._call(name, lambda: self._get(name)["Body"].read())

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        part = self._read_part(name, start, stop)
        return part[0] if part else b""

    def read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        return self._read_part(name, start, stop) or (b"", self.size(name))

    def _read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int] | None:
        """Return bytes and the object's size; None where there are no such bytes, which S3 answers without the size."""

        def get() -> tuple[bytes, int]:
            answer = self._get(name, Range=f"bytes={start}-{stop - 1}")
            return answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2])

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
                print(f"storage: {problem}; next try in {pause:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@functools.lru_cache(maxsize=8)
def _client_of(process_id: int, variables: frozenset[tuple[str, str]]) -> Any:
    """One client for a process, as it must not cross a fork, and for what the environment says of S3."""
    import boto3
    from botocore.config import Config

    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it tells where it found the credentials
    return boto3.session.Session().client(  # a session of its own: boto3's default one keeps what it read first
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
    """Turn an error of boto3 into one line, and say whether it may pass; None for what is not storage's."""
    import botocore.exceptions as aws
    from boto3.exceptions import S3UploadFailedError

    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        return _explain(error.__context__, url)
    if isinstance(error, aws.ClientError):
        return _explain_refusal(error, url)
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageError(f"{url}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), False
    if isinstance(error, aws.ParamValidationError | aws.InvalidEndpointDiscoveryConfigurationError):
        return StorageError(f"{url}: not a valid S3 name: {error}"), False
    if isinstance(error, aws.BotoCoreError | ConnectionError | TimeoutError):
        where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the S3 service"
        return StorageError(f"{url}: {where} cannot be reached ({type(error).__name__}): is it running?"), True
    return None, False


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
        return _BeyondTheEnd(f"{url} ends before the range that was asked for"), False
    passing = status >= 500 or code in ("SlowDown", "RequestTimeout", "Throttling", "RequestTimeTooSkewed")
    return StorageError(f"{url}: S3 answers {status} {code}"), passing
