"""The index on disk as it is now: opened once, and again when another version takes its place."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable

from brewclip.errors import UserError
from brewclip.service.engine import ImageFile, ServedIndex
from brewclip.service.problems import Problem

_log = logging.getLogger("brewclip.service")
# First bytes -> media type, of the formats that an index may hold.
_MAGIC = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"\0\0\0\x0cjP": "image/jp2",
}


class CurrentIndex:
    """Opens an index and follows its replacement on disk or in a bucket; thread-safe, and nobody waits for it.

    Args:
        open_index: opens the index as it is now.
        mark: returns something that changes when the index on disk is replaced, at the cost of a look.
        check: raises `UserError` for an index that must not be served, such as one of another system.
        look_every_seconds: at least between two looks.

    Raises:
        UserError: if the index cannot be served. A later one that cannot be is logged, and the last one stays.
    """

    def __init__(
        self,
        open_index: Callable[[], ServedIndex],
        mark: Callable[[], object],
        check: Callable[[ServedIndex], None] = lambda index: None,
        look_every_seconds: float = 1.0,
    ) -> None:
        self._open, self._read_mark, self._check = open_index, mark, check
        self._every_seconds = look_every_seconds
        self._looking = threading.Lock()
        self._mark = mark()
        self._looked_at = time.monotonic()
        self._index = open_index()
        check(self._index)

    def get(self) -> ServedIndex:
        """Return the current index without waiting; now and then, a thread looks whether it was replaced."""
        is_due = time.monotonic() - self._looked_at >= self._every_seconds
        if is_due and self._looking.acquire(blocking=False):
            threading.Thread(target=self._look_once, name="index", daemon=True).start()
        return self._index

    def _look_once(self) -> None:
        try:
            self._look()
        finally:
            self._looked_at = time.monotonic()
            self._looking.release()

    def _look(self) -> None:
        try:
            mark = self._read_mark()
            if mark == self._mark:
                return
            index = self._open()
            self._check(index)
        except (OSError, ValueError) as error:  # UserError is a ValueError
            _log.warning("the index was replaced by one that cannot be served, the last one stays: %s", error)
            return
        self._mark = mark
        if index.version != self._index.version:
            _log.info("index %s takes the place of %s", index.version[:12], self._index.version[:12])
        self._index = index

    def original(self, image_id: str) -> ImageFile:
        """Return an image as it is stored.

        Raises:
            Problem: 404 for an unknown id, 410 if the image is gone or changed.
        """
        index = self.get()
        row = row_of(index, image_id)
        try:
            data = index.read_image(row)
        except (LookupError, OSError):
            raise Problem(410, "gone", "the image is no longer there, or has changed since it was indexed") from None
        return ImageFile(data, media_type_of(data), _tag(data))

    def thumbnail(self, image_id: str) -> ImageFile:
        """Return a small JPEG of an image; raises `Problem` 404 for an unknown id."""
        index = self.get()
        data = index.thumbnail(row_of(index, image_id))
        return ImageFile(data, "image/jpeg", _tag(data))


def row_of(index: ServedIndex, image_id: str) -> int:
    """Return the row of an image; raises `Problem` 404 for an unknown id."""
    try:
        return index.row_of(image_id)
    except (LookupError, UserError):
        raise Problem(404, "unknown_image", "the index has no image of this id") from None


def media_type_of(data: bytes) -> str:
    """Return the media type of an image file by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    found = (kind for magic, kind in _MAGIC.items() if data.startswith(magic))
    return next(found, "application/octet-stream")


def _tag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
