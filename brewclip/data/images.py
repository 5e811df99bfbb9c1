"""Images: decoding within limits, CLIP's square transforms, reduction for storage, and a cache for later epochs."""

import functools
import hashlib
import io
import math
import struct
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from brewclip.data.image_modes import to_rgb
from brewclip.data.schema import BadSample

MAX_IMAGE_PIXELS = 100_000_000
# The decoders of these formats hold the image several times: 100 megapixels of WebP took 1.6 GB, of JPEG 0.8 GB.
_MOST_PIXELS = {"WEBP": 50_000_000, "AVIF": 50_000_000, "JPEG2000": 50_000_000}
_LONGEST_SIDE = 1_000_000  # Pillow keeps an address for each row: 1 x 100,000,000 pixels took 2 GB
# Pillow's formats of photographs. Others pass the file to programs (EPS to Ghostscript), or are recognised by their
# extension only.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# Sides of the square images that open_clip's towers and the scenes CLIP take.
CLIP_SIDES = (96, 224, 240, 256, 280, 288, 320, 336, 378, 384, 448)
# 95 without chroma subsampling: features within a cosine of 0.9997 of the original's, at 5/4 of the bytes of 4:2:0,
# which gives 0.9987 (docs/LOG.md, 2026-11-26).
_JPEG_QUALITY, _NO_SUBSAMPLING = 95, 0
_JPEG_MAGIC = b"\xff\xd8\xff"
_LONGEST_JPEG_SIDE = 65_500  # libjpeg writes no longer one
# Images longer than this many times their short side are cropped before they are resized: of a 1 x 65535 image, the
# resized one would have 3.3 billion pixels, of which the crop takes 50,176.
_LONG_ASPECT = 16
_FILTER_PIXELS = 2  # how far the bicubic filter reaches to either side, in pixels of the smaller scale
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def open_image(data: bytes | None) -> Image.Image:
    """Decode an image to RGB as a viewer shows it: rotated by its EXIF orientation, the first frame of several.

    Args:
        data: an image file of one of `FORMATS`. For its pixels see `image_modes.to_rgb`.

    Raises:
        BadSample: if there is none, it cannot be decoded or shown, or it has more than 100 megapixels
            (50 in a format whose decoder takes twice as much memory).
    """
    if data is None:
        raise BadSample("image", "there is none")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            most = _MOST_PIXELS.get(opened.format or "", MAX_IMAGE_PIXELS)
            if opened.width * opened.height > most or max(opened.size) > _LONGEST_SIDE:
                raise BadSample("image", f"{opened.width} x {opened.height} pixels are too many")
            ImageOps.exif_transpose(opened, in_place=True)
            return to_rgb(opened)
    except BadSample:
        raise
    except UnidentifiedImageError as error:
        raise BadSample("image", f"cannot identify an image; {', '.join(FORMATS)} can be read") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise BadSample("image", str(error)) from error


def decode_image(
    data: bytes | None,
    side_pixels: int,
    transform: str = "crop",
    fill: tuple[int, int, int] = (0, 0, 0),
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Decode an image and transform it to a square.

    Source: open_clip.image_transform, whose resize modes are `shortest`, `squash` and `longest`.

    Args:
        data: an encoded image.
        side_pixels: of the square.
        transform: `crop` reduces the short side and crops the centre; `squash` reduces each side by itself;
            `letterbox` reduces the long side and keeps the whole image between bars.
        fill: colour of the bars.
        interpolation: `bicubic` or `bilinear`.

    Returns:
        (3, side, side) uint8.

    Raises:
        BadSample: as `open_image`.
    """
    return transform_image(open_image(data), side_pixels, transform, fill, interpolation)


def transform_image(
    image: Image.Image,
    side_pixels: int,
    transform: str = "crop",
    fill: tuple[int, int, int] = (0, 0, 0),
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Transform an RGB image to a square, (3, side, side) uint8, see `decode_image`."""
    resampling = _RESAMPLING[interpolation]
    if transform == "letterbox":
        square = _letterbox(image, side_pixels, fill, resampling)
    elif transform == "squash":
        square = _resize(image, (side_pixels, side_pixels), resampling)
    else:
        square = _crop(image, side_pixels, resampling)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def reduce_image(data: bytes, side_pixels: int, *, exact: bool) -> bytes:
    """Decode an image once and reduce it for storage, as JPEG.

    Features of what is stored are within a cosine of 0.9995 of the original's, also where it is reduced again. A JPEG
    keeps its bytes if its short side is not longer or, unless the size is to be exact, if it would not take fewer.

    Args:
        data: an encoded image.
        side_pixels: what its short side is reduced to; 0 leaves it.
        exact: the short side gets just that length, since a CLIP takes it. Otherwise it may get a little longer, see
            `stored_size`.

    Raises:
        BadSample: as `open_image`, and if what is to be stored is longer than a JPEG can be.
    """
    image = open_image(data)
    size = stored_size(image.size, side_pixels, exact=exact) if side_pixels else image.size
    is_jpeg = data.startswith(_JPEG_MAGIC)
    if is_jpeg and size == image.size:
        return data
    if max(size) > _LONGEST_JPEG_SIDE:
        raise BadSample("image", f"{size[0]} x {size[1]} pixels; a JPEG has at most {_LONGEST_JPEG_SIDE} on a side")
    buffer = io.BytesIO()
    _resize(image, size, Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=_NO_SUBSAMPLING
    )
    return data if is_jpeg and not exact and len(data) <= buffer.tell() else buffer.getvalue()


@functools.lru_cache(4096)
def stored_size(size: tuple[int, int], side_pixels: int, *, exact: bool) -> tuple[int, int]:
    """Return the size to which an image is reduced for storage.

    CLIP's transform rounds the long side down. From an image that was rounded before it may come out a pixel shorter,
    which shifts the crop: cosines fall to 0.96. So an image that will be reduced again gets the first size from
    `side_pixels` on that leads every CLIP to the same pixels as the original; failing that, it keeps its own.

    Args:
        size: width and height.
        side_pixels: of the short side.
        exact: return the size for a CLIP of that side, without regard to other CLIPs.

    Returns:
        Width and height; those of the original if its short side is not longer.
    """
    short, long = min(size), max(size)
    sides = [side for side in CLIP_SIDES if side <= side_pixels]
    for side in range(side_pixels, min(short, 2 * side_pixels)):
        for other in (side * long // short, -(-side * long // short)):
            if exact or all(_sizes_for((side, other), one) == _sizes_for((short, long), one) for one in sides):
                return (side, other) if size[0] <= size[1] else (other, side)
    return size


def _sizes_for(size: tuple[int, int], side_pixels: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return _cropped_size(size, side_pixels), _letterboxed_size(size, side_pixels)


def _cropped_size(size: tuple[int, int], side_pixels: int) -> tuple[int, int]:
    """Return the size of an image when its short side is reduced, before it is cropped, as torchvision counts it."""
    width, height = size
    other = int(side_pixels * max(size) / min(size))
    return (side_pixels, other) if width <= height else (other, side_pixels)


def _letterboxed_size(size: tuple[int, int], side_pixels: int) -> tuple[int, int]:
    """Return the size of an image when its long side is reduced."""
    scale = side_pixels / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if size == image.size else image.resize(size, resampling)


def _crop(image: Image.Image, side_pixels: int, resampling: Image.Resampling) -> Image.Image:
    if max(image.size) > _LONG_ASPECT * min(image.size):
        return _crop_long(image, side_pixels, resampling)
    image = _resize(image, _cropped_size(image.size, side_pixels), resampling)
    left, top = (round((side - side_pixels) / 2) for side in image.size)
    return image.crop((left, top, left + side_pixels, top + side_pixels))


def _crop_long(image: Image.Image, side_pixels: int, resampling: Image.Resampling) -> Image.Image:
    """Crop an image of an extreme aspect ratio as `_crop` does, resizing only what the crop shows."""
    scaled = _cropped_size(image.size, side_pixels)
    axis = 0 if scaled[0] > scaled[1] else 1
    scale = image.size[axis] / scaled[axis]
    start = round((scaled[axis] - side_pixels) / 2) * scale
    stop = min(start + side_pixels * scale, image.size[axis])
    margin = math.ceil(_FILTER_PIXELS * max(1.0, scale)) + 1
    first, last = max(0, int(start) - margin), min(image.size[axis], math.ceil(stop) + margin)
    part, box = [0, 0, *image.size], [0.0, 0.0, *image.size]
    part[axis], part[axis + 2] = first, last
    box[axis], box[axis + 2] = start - first, stop - first  # from the part's edge: Pillow keeps them in 32 bits
    image = image.crop((part[0], part[1], part[2], part[3]))
    # One side after the other, as Pillow does it for the whole image: the other order differs where noise is clipped.
    rows = image.height
    image = image.resize((side_pixels, rows), resampling, (box[0], 0, box[2], rows))
    return image.resize((side_pixels, side_pixels), resampling, (0, box[1], side_pixels, box[3] if axis else rows))


def _letterbox(
    image: Image.Image, side_pixels: int, fill: tuple[int, int, int], resampling: Image.Resampling
) -> Image.Image:
    width, height = _letterboxed_size(image.size, side_pixels)
    square = Image.new("RGB", (side_pixels, side_pixels), fill)
    square.paste(_resize(image, (width, height), resampling), ((side_pixels - width) // 2, (side_pixels - height) // 2))
    return square


class ImageCache:
    """Cache of decoded images by the digest of their bytes, up to a bound; thread-safe.

    An epoch reads every image once, or several times for several captions. Nothing is evicted: replacing entries by
    later images would leave no hits for the next epoch.

    Args:
        memory_bytes: bound of the decoded images.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._left_bytes = memory_bytes
        self._images: dict[bytes, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, data: bytes | memoryview, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the read-only image of some bytes; call `decode` if it is not cached."""
        digest = hashlib.blake2b(data, digest_size=16).digest()
        image = self._images.get(digest)
        if image is not None:
            return image
        image = decode()
        with self._lock:
            if digest not in self._images and image.nbytes <= self._left_bytes:
                self._left_bytes -= image.nbytes
                self._images[digest] = image
        return image
