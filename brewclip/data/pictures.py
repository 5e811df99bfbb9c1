"""Pictures: decoded within limits, made square as CLIP wants them, and kept for the next epoch where memory allows."""

import hashlib
import io
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from brewclip.data.schema import BadSample

MAX_IMAGE_PIXELS = 100_000_000


def open_picture(data: bytes | None) -> Image.Image:
    """Decode a picture to RGB, turned as its camera says.

    Raises:
        BadSample: if there is no picture, it cannot be decoded, or it has more than 100 megapixels.
    """
    if data is None:
        raise BadSample("picture", "there is none")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_IMAGE_PIXELS:
                raise BadSample("picture", f"{opened.width} x {opened.height} pixels are too many")
            ImageOps.exif_transpose(opened, in_place=True)
            return opened.convert("RGB")
    except BadSample:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSample("picture", str(error)) from error


def decode_image(
    data: bytes | None, side_pixels: int, transform: str = "crop", fill: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """Decode a picture and make it a square.

    Source: open_clip.image_transform (bicubic resize, centre crop) for `crop`.

    Args:
        data: an encoded picture.
        side_pixels: of the square.
        transform: `crop` reduces the short side and cuts out the middle, as CLIP's own transform does; `letterbox`
            reduces the long side and keeps the whole picture between bars.
        fill: colour of the bars.

    Returns:
        (3, side, side) uint8.

    Raises:
        BadSample: as `open_picture`.
    """
    picture = open_picture(data)
    square = _letterbox(picture, side_pixels, fill) if transform == "letterbox" else _crop(picture, side_pixels)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _crop(picture: Image.Image, side_pixels: int) -> Image.Image:
    width, height = picture.size
    other = int(side_pixels * max(width, height) / min(width, height))
    size = (side_pixels, other) if width <= height else (other, side_pixels)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side_pixels) / 2), round((size[1] - side_pixels) / 2)
    return picture.crop((left, top, left + side_pixels, top + side_pixels))


def _letterbox(picture: Image.Image, side_pixels: int, fill: tuple[int, int, int]) -> Image.Image:
    scale = side_pixels / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side_pixels, side_pixels), fill)
    square.paste(picture, ((side_pixels - width) // 2, (side_pixels - height) // 2))
    return square


class KeptPictures:
    """Decoded pictures by the digest of their bytes, up to a bound; safe to share by threads.

    An epoch meets every picture once, and captions of one picture meet it several times. What is in stays: to drop it
    for what comes later would leave nothing for the next epoch.

    Args:
        memory_bytes: bound of the decoded pictures.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._left_bytes = memory_bytes
        self._pictures: dict[bytes, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, data: bytes | memoryview, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the picture of some bytes, not to be written to; `decode` makes it unless it is there."""
        digest = hashlib.blake2b(data, digest_size=16).digest()
        picture = self._pictures.get(digest)
        if picture is not None:
            return picture
        picture = decode()
        with self._lock:
            if digest not in self._pictures and picture.nbytes <= self._left_bytes:
                self._left_bytes -= picture.nbytes
                self._pictures[digest] = picture
        return picture
