"""Image files to vectors and thumbnails: read, hashed and decoded in threads while batches are encoded."""

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brewclip.data.images import open_image
from brewclip.data.schema import BadSample
from brewclip.serving.index.parts import EmbeddedImage
from brewclip.serving.index.sources import ImageFile, read_file

_BATCH = 64
_THUMBNAIL_PIXELS = 256  # of the long side
_THUMBNAIL_QUALITY = 80
Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageEncoder(Protocol):
    """What an index needs of an `Embedder`."""

    name: str
    identity: dict[str, Any]

    @property
    def embed_dim(self) -> int:
        """Width E of the vectors."""

    @property
    def reads_text(self) -> bool:
        """Whether it embeds texts."""

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors of unit length, (n, E)."""

    def transform_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return what is encoded of an RGB image, (3, S, S); called from several threads."""

    def encode_transformed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return vectors of unit length, (n, E)."""


# The content of an index: sha256 -> what it holds of these bytes, for any file.
Known = Callable[[bytes], EmbeddedImage | None]


def embed_files(
    encoder: ImageEncoder, files: Iterable[ImageFile], known: Known = lambda sha256: None
) -> Iterator[list[EmbeddedImage]]:
    """Embed image files, in their order.

    Args:
        encoder: the system.
        files: read once each. One of known content is neither decoded nor encoded.
        known: content that needs no work.

    Yields:
        Batches.

    Raises:
        StorageError: if storage cannot be reached.
    """

    def read(file: ImageFile) -> tuple[EmbeddedImage, NDArray[np.uint8] | None]:
        try:
            data = read_file(file.name, file.size_bytes)
            if len(data) != file.size_bytes:
                raise BadSample("image", "it changed while it was read")
            sha256 = hashlib.sha256(data).digest()
            found = known(sha256)
            return (replace(found, file=file), None) if found else _decode(encoder, file, data, sha256)
        except BadSample as error:
            return EmbeddedImage(file, error.detail), None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = map_ahead(pool, read, files, 2 * _BATCH)
        while batch := list(islice(results, _BATCH)):
            squares = [square for _, square in batch if square is not None]
            vectors = iter(encoder.encode_transformed(squares).astype(np.float16) if squares else ())
            yield [one if square is None else replace(one, vector=next(vectors).tobytes()) for one, square in batch]


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield results in order, with at most `ahead` items in work or waiting to be taken."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()


def _decode(
    encoder: ImageEncoder, file: ImageFile, data: bytes, sha256: bytes
) -> tuple[EmbeddedImage, NDArray[np.uint8]]:
    image = open_image(data)
    done = EmbeddedImage(file, "", sha256, image.width, image.height, _thumbnail(image))
    return done, encoder.transform_image(image)


def _thumbnail(image: Image.Image) -> bytes:
    """Return a reduced copy as JPEG; a smaller image keeps its size."""
    scale = min(1.0, _THUMBNAIL_PIXELS / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image if size == image.size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()
