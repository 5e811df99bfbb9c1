"""Conversion of image modes to the 8-bit RGB that a viewer shows.

Transparent images are composited on white, as on a web page. 16-bit images keep their high byte. Colour
profiles (ICC) are not applied, since CLIP's own transform applied none in training.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from brewclip.data.schema import BadSample

_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 258, 262, 0
_WHITE_16_BITS = 65535
_PART_PIXELS = 2**22  # converted at a time where a conversion needs several times the memory of the image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB.

    Args:
        image: of any mode that Pillow decodes. CMYK is converted as Pillow does it, without a profile; a JPEG's is
            inverted first, as Adobe writes it and browsers read it.

    Raises:
        BadSample: if nothing says which value is white: 32-bit integers, floats outside 0..1.
        ValueError: if Pillow cannot convert the mode.
    """
    if image.mode.startswith("I;16"):
        return _from_integers(image, *_tiff_white(image))
    if image.mode == "I":
        # Pillow scales every PGM of more than 8 bits to 16 of them. 32-bit files say nothing of their range.
        if image.format != "PPM":
            raise BadSample("image", "32-bit integer pixels do not say which value is white: convert to 8 or 16 bits")
        return _from_integers(image, _WHITE_16_BITS)
    if image.mode == "F":
        return _from_floats(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def _tiff_white(image: Image.Image) -> tuple[int, bool]:
    """Return the value of white, or of black where the file says that zero is white, and whether it does."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(tags.get(_TIFF_BITS_PER_SAMPLE, (16,))[0])
    return (1 << bits) - 1, tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO


def _iter_parts(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield left and top of parts that cover an image, and each part."""
    width = min(image.width, _PART_PIXELS)
    height = max(1, _PART_PIXELS // max(1, width))
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            yield left, top, image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))


def _in_parts(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB part by part; `convert` must treat each pixel by itself."""
    if image.width * image.height <= _PART_PIXELS:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for left, top, part in _iter_parts(image):
        converted.paste(convert(part), (left, top))
    return converted


def _from_integers(image: Image.Image, white: int, white_is_zero: bool = False) -> Image.Image:
    def convert(part: Image.Image) -> Image.Image:
        values = np.asarray(part).astype(np.int64).clip(0, white)
        values = (values * 255 + white // 2) // white
        return Image.fromarray((255 - values if white_is_zero else values).astype(np.uint8)).convert("RGB")

    return _in_parts(image, convert)


def _from_floats(image: Image.Image) -> Image.Image:
    ends = np.array([(values.min(), values.max()) for values in (np.asarray(part) for *_, part in _iter_parts(image))])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if not (low >= 0 and high <= 1):  # also if one is not a number
        raise BadSample("image", f"float pixels from {low:g} to {high:g} do not say which is white: scale to 0..1")
    return _in_parts(
        image, lambda part: Image.fromarray((np.asarray(part) * 255 + 0.5).astype(np.uint8)).convert("RGB")
    )


def _on_white(image: Image.Image) -> Image.Image:
    def convert(part: Image.Image) -> Image.Image:
        part = part.convert("RGBA")
        if part.getchannel("A").getextrema() == (255, 255):  # opaque
            return part.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")

    return _in_parts(image, convert)
