"""Storage in an S3 bucket (s3://), through boto3.

Reads and writes survive outages: they are retried with growing, jittered pauses until `retry_seconds` have passed. An
answer is used only where it is whole and is the one to the request.
Credentials come from botocore's chain, which renews them; they are never stored or printed here.
"""

import contextlib
import os
import random
import re
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from brewclip.config.masking import without_secrets
from brewclip.data.listing import StoredObject
from brewclip.data.s3_client import s3_client
from brewclip.data.s3_errors import UnfinishedAnswer, explain, status_of
from brewclip.errors import ObjectMissing, StorageError

Answer = TypeVar("Answer")
_LONGEST_PAUSE_SECONDS = 5.0
_PART_BYTES, _PARTS_AT_ONCE = 8 * 2**20, 4
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _Part(NamedTuple):
    """Bytes of an object, its size in bytes, and what tells its versions apart, if the server says."""

    data: bytes
    size: int
    etag: str = ""


class S3Storage:
    """Objects below a prefix of a bucket; safe to use from many threads, and picklable."""

    def __init__(self, bucket: str, prefix: str, retry_seconds: float) -> None:
        self.bucket, self.prefix, self.retry_seconds = bucket, prefix, retry_seconds
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, name: str) -> bytes:
        return self._call(name, lambda: _body_of(self._get(name)))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        return self._call(name, lambda: self._get_part(name, start, stop)).data if stop > start else b""

    def read_part(self, name: str, start: int, stop: int) -> tuple[bytes, int]:
        if stop <= start:
            return b"", self.size(name)
        part = self._call(name, lambda: self._get_part(name, start, stop))
        return part.data, part.size

    def size(self, name: str) -> int:
        return self._call(name, lambda: self._head(name))

    def write(self, name: str, data: bytes) -> None:
        self._call(name, lambda: s3_client().put_object(**self._place(name), Body=data))

    def create(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        tries: list[Exception] = []  # those without a clear answer: each may have written

        def put() -> bool:
            try:
                s3_client().put_object(**self._place(name), Body=data, IfNoneMatch="*")
            except Exception as error:
                status = status_of(error) if isinstance(error, ClientError) else 0
                if status in (409, 412) and not tries:
                    return False  # there is one, or one is being written
                if status == 412:
                    return _unless_missing(lambda: _body_of(self._get(name))) == data
                tries.append(error)
                raise
            return True

        return self._call(name, put)

    def upload(self, path: Path, name: str) -> None:
        def put() -> None:
            try:
                s3_client().upload_file(str(path), **self._place(name), Config=_transfer_config())
            except KeyError as error:  # boto3's answer to a truncated one
                raise UnfinishedAnswer(f"the answer to the upload lacks its {error}") from error
            size = path.stat().st_size
            if size >= _PART_BYTES and _unless_missing(lambda: self._head(name)) != size:
                raise UnfinishedAnswer("the upload was not completed")

        self._call(name, put)

    def download(self, name: str, path: Path) -> None:
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with open(partial, "wb") as file:
                self._copy_parts(name, file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _copy_parts(self, name: str, file: int) -> None:
        """Write an object to a file; boto3's own download waits without end where an answer lacks its length."""

        def copy(start: int, version: dict[str, str]) -> _Part:
            part = self._call(name, lambda: self._get_part(name, start, start + _PART_BYTES, **version))
            os.pwrite(file, part.data, start)
            return part

        first = copy(0, {})
        version = {"IfMatch": first.etag} if first.etag else {}
        starts = range(_PART_BYTES, first.size, _PART_BYTES)
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            if any(part.size != first.size for part in pool.map(copy, starts, [version] * len(starts))):
                raise StorageError(f"{self.url}/{name} was replaced while it was downloaded")

    def list_names(self, prefix: str = "") -> list[str]:
        return [one.name for one in self.list_objects(prefix)]

    def list_objects(self, prefix: str = "") -> list[StoredObject]:
        start = len(self.prefix) + 1 if self.prefix else 0
        pages = self._call(prefix, lambda: self._pages(self._key(prefix)))
        items = (item for page in pages for item in page.get("Contents", []))
        return sorted(StoredObject(item["Key"][start:], item.get("Size", 0), _nanoseconds(item)) for item in items)

    def list_folders(self) -> list[str]:
        prefix = self._key("")
        pages = self._call("", lambda: self._pages(prefix, Delimiter="/"))
        folders = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        return sorted(folder[len(prefix) :].rstrip("/") for folder in folders)

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing):
            self._call(name, lambda: s3_client().delete_object(**self._place(name)))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(name)}

    def _get(self, name: str, **options: str) -> Any:
        return s3_client().get_object(**self._place(name), **options)

    def _get_part(self, name: str, start: int, stop: int, **options: str) -> _Part:
        """Return the bytes start..stop in one request; in two where there are none."""
        from botocore.exceptions import ClientError

        try:
            answer = self._get(name, Range=f"bytes={start}-{stop - 1}", **options)
        except ClientError as error:
            if status_of(error) != 416:
                raise
            size = self._head(name)
            if start < size:
                raise UnfinishedAnswer("a range of the object is refused") from error
            return _Part(b"", size)
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        if match is None:
            raise UnfinishedAnswer("the answer does not say which range it is")
        first, last, size = map(int, match.groups())
        data = _body_of(answer)
        if (first, last + 1) != (start, min(stop, size)) or len(data) != last + 1 - first:
            raise UnfinishedAnswer("the answer is another range than the requested one")
        return _Part(data, size, answer.get("ETag", ""))

    def _head(self, name: str) -> int:
        answer = s3_client().head_object(**self._place(name))
        if "ContentLength" not in answer:
            raise UnfinishedAnswer("the answer does not say how large the object is")
        return int(answer["ContentLength"])

    def _pages(self, prefix: str, **options: str) -> list[dict[str, Any]]:
        paginator = s3_client().get_paginator("list_objects_v2")
        pages = list(paginator.paginate(Bucket=self.bucket, Prefix=prefix, **options))
        if not all("IsTruncated" in page for page in pages):
            raise UnfinishedAnswer("the answer is not a list of objects")
        return pages

    def _call(self, name: str, operation: Callable[[], Answer]) -> Answer:
        """Run one operation, repeated with growing pauses while the failure may pass."""
        deadline = time.monotonic() + self.retry_seconds
        pause = 0.1
        while True:
            try:
                return operation()
            except Exception as error:
                problem, may_pass = explain(error, f"{self.url}/{name}")
                if problem is None:
                    raise
                if not may_pass or time.monotonic() + pause > deadline:
                    raise problem from error
            if pause >= 1.0:
                line = without_secrets(str(problem))
                print(f"storage: {line}; next try in {pause:.0f} s", file=sys.stderr, flush=True)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _unless_missing(request: Callable[[], Answer]) -> Answer | None:
    """Return the answer to a request; None if the object does not exist."""
    from botocore.exceptions import ClientError

    try:
        return request()
    except ClientError as error:
        if status_of(error) == 404:
            return None
        raise


def _transfer_config() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES)


def _nanoseconds(item: dict[str, Any]) -> int:
    """Return when a listed object was written, in nanoseconds since 1970; S3 gives whole milliseconds at best."""
    written = item.get("LastModified")
    return round(written.timestamp() * 1000) * 1_000_000 if written else 0


def _body_of(answer: Any) -> bytes:
    """Read the body of an answer; botocore notices one that is shorter than its length.

    Raises:
        UnfinishedAnswer: if nothing says where the body ends.
    """
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if "ContentLength" not in answer and headers.get("transfer-encoding") != "chunked":
        raise UnfinishedAnswer("the answer does not say how long it is")
    return bytes(answer["Body"].read())
