"""Images to index: folders, files and globs of this machine, and prefixes and globs of S3 buckets."""

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brewclip.audio import MAX_BYTES
from brewclip.data.schema import BadSample
from brewclip.data.storage import open_storage
from brewclip.errors import ObjectMissing, StorageError, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif")
_S3 = "s3://"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that may be an image.

    Attributes:
        name: absolute path, or s3:// URL.
        size_bytes: of the file.
        modified_ns: when it was written, since 1970.
    """

    name: str
    size_bytes: int
    modified_ns: int


def list_images(sources: Sequence[str]) -> list[ImageFile]:
    """List image files, each once, sorted by name.

    Args:
        sources: folders (with all folders in them), files or globs of this machine; `s3://bucket/prefix`, also with
            `*`, which there matches `/` as well. Of folders and prefixes, files that are hidden or have another suffix
            than `SUFFIXES` are passed over.

    Raises:
        UserError: if a source does not exist, or there is no image at all.
    """
    if not sources:
        raise UserError("no images are named: give folders, files, globs in quotes or s3:// prefixes")
    found: dict[str, ImageFile] = {}
    for source in sources:
        files = _in_bucket(source) if source.startswith(_S3) else _on_disk(source)
        found |= {file.name: file for file in files}
    if not found:
        raise UserError(f"{', '.join(sources)} holds no image ({', '.join(SUFFIXES)})")
    return [found[name] for name in sorted(found)]


def read_file(name: str, size_bytes: int) -> bytes:
    """Return the bytes of an image file; one more than `size_bytes` if there are more.

    Raises:
        BadSample: if it is gone, is not a file, is too large, or cannot be read.
        StorageError: if storage cannot be reached.
    """
    if size_bytes > MAX_BYTES:
        raise BadSample("image", f"{size_bytes} bytes, the limit is {MAX_BYTES}")
    if name.startswith(_S3):
        bucket, _, key = name.removeprefix(_S3).partition("/")
        try:
            return open_storage(f"{_S3}{bucket}").read_range(key, 0, size_bytes + 1)
        except ObjectMissing:
            raise BadSample("image", "it is gone") from None
    try:
        if not Path(name).is_file():  # opening a pipe would wait for ever
            raise BadSample("image", "it is gone, or no file")
        with open(name, "rb") as file:
            return file.read(size_bytes + 1)
    except OSError as error:
        raise BadSample("image", f"it cannot be read: {error.strerror}") from None


def _on_disk(source: str) -> Iterator[ImageFile]:
    path = Path(source).expanduser()
    if path.exists():
        yield from _at(path.resolve())
    elif _GLOB.search(source):
        top = Path(path.anchor or ".")
        for match in sorted(top.glob(str(path.relative_to(path.anchor)))):
            if match.is_dir() or _wanted(match.name):
                yield from _at(match.resolve())
    else:
        raise UserError(f"{source!r} is neither a folder nor a file on this machine, nor an s3:// prefix")


def _at(path: Path) -> Iterator[ImageFile]:
    """Yield a file, or the images in a folder and its folders."""
    inside = (Path(top, name) for top, _, names in os.walk(path) for name in names if _wanted(name))
    for one in inside if path.is_dir() else [path]:
        try:
            status = one.stat()
        except OSError:  # it went away meanwhile, or is a link that leads nowhere
            continue
        if stat.S_ISREG(status.st_mode):
            yield ImageFile(str(one), status.st_size, status.st_mtime_ns)


def _in_bucket(source: str) -> Iterator[ImageFile]:
    bucket, _, pattern = source.removeprefix(_S3).partition("/")
    if not bucket:
        raise UserError(f"{source!r} names no bucket: give s3://bucket/prefix")
    found = _GLOB.search(pattern)
    prefix = pattern[: found.start()] if found else pattern
    try:
        objects = open_storage(f"{_S3}{bucket}", retry_seconds=10.0).list_objects(prefix)
    except StorageError as error:
        raise UserError(str(error)) from None
    for one in objects:
        if found:
            wanted = fnmatch.fnmatchcase(one.name, pattern)
        else:  # photos/ does not hold what lies in photos-of-others/
            wanted = not prefix or prefix.endswith("/") or one.name[len(prefix) :][:1] in ("", "/")
        if wanted and _wanted(one.name.rpartition("/")[2]):
            yield ImageFile(f"{_S3}{bucket}/{one.name}", one.size_bytes, one.modified_ns)


def _wanted(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
