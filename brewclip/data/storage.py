"""Interface of object storage: s3://bucket/prefix through boto3, file:///folder on disk.

Every object is written atomically.
"""

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

from brewclip.config.extras import check_installed
from brewclip.data.folder_storage import FolderStorage
from brewclip.data.listing import StoredObject
from brewclip.data.s3_storage import S3Storage
from brewclip.errors import ObjectMissing, StorageError


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

    def list_objects(self, prefix: str = "") -> list[StoredObject]:
        """Return names, sizes and times of what begins with the prefix, sorted by name."""

    def list_folders(self) -> list[str]:
        """Return the folders directly below the URL, sorted, without their content."""

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
        check_installed("boto3", url)
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
