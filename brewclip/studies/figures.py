"""Sheets of images as PNG: the best and worst queries of a system, and where systems look and listen."""

import io
import textwrap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE_PIXELS = 144
_GAP_PIXELS = 12
_TEXT_PIXELS = 15
_LINE_PIXELS = 20
_TEXT_COLUMNS = 34  # characters in a column of text, two tiles wide
_GREEN, _INK, _SOFT, _PAPER = (26, 143, 74), (20, 20, 20), (110, 110, 110), (255, 255, 255)
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)  # inferno
_HEAT_OPACITY = 0.65
_SPECTRUM_PIXELS = 6 * TILE_PIXELS


@dataclass(frozen=True)
class GalleryRow:
    """One query.

    Attributes:
        lines: of text beside the images.
        right: the right image.
        found: the nearest images, nearest first.
        right_place: which of them is the right one, or -1.
    """

    lines: list[str]
    right: Image.Image
    found: list[Image.Image]
    right_place: int


@dataclass(frozen=True)
class RelevanceMaps:
    """Where one system looks and listens.

    Attributes:
        system: name.
        rank: of the right image.
        patches: (rows, columns) relevance of the image, 0..1.
        frames: (T,) relevance of the sound, 0..1, or None if the system does not hear it.
    """

    system: str
    rank: int
    patches: NDArray[np.float32]
    frames: NDArray[np.float32] | None


def draw_gallery(title: str, rows: list[GalleryRow]) -> bytes:
    """Draw queries below each other: text, right image, nearest images with the right one framed; PNG."""
    step = TILE_PIXELS + _GAP_PIXELS
    most = max(len(row.found) for row in rows)
    sheet = Image.new("RGB", (_GAP_PIXELS + (3 + most) * step + _GAP_PIXELS, 40 + len(rows) * step), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (_GAP_PIXELS, 10), [title], size_pixels=18)
    for number, row in enumerate(rows):
        top = 40 + number * step
        _write(pen, (_GAP_PIXELS, top), _wrapped(row.lines))
        left = _GAP_PIXELS + 2 * step
        sheet.paste(fit(row.right), (left, top))
        for place, image in enumerate(row.found):
            left += step + (_GAP_PIXELS if place == 0 else 0)
            sheet.paste(fit(image), (left, top))
            if place == row.right_place:
                pen.rectangle(
                    (left - 4, top - 4, left + TILE_PIXELS + 3, top + TILE_PIXELS + 3), outline=_GREEN, width=4
                )
    return to_png(sheet)


def draw_relevance(lines: list[str], image: Image.Image, mel: NDArray[np.float32], looks: list[RelevanceMaps]) -> bytes:
    """Draw one query: the image with each system's relevance over it, and the spectrogram with that of its frames.

    Args:
        lines: of text above.
        image: the square that the systems are given.
        mel: (bands, 2 * T or less) log-mel spectrogram, or relevance alone where it has no column.
        looks: one for each system.
    """
    step, rows = TILE_PIXELS + _GAP_PIXELS, len(looks) + 1
    head = 16 + _LINE_PIXELS * len(_wrapped(lines, 110))
    left = 2 * _GAP_PIXELS + step
    sheet = Image.new("RGB", (left + step + _SPECTRUM_PIXELS + _GAP_PIXELS, head + rows * step), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (_GAP_PIXELS, 10), _wrapped(lines, 110))
    _write(pen, (_GAP_PIXELS, head), ["given"])
    sheet.paste(fit(image), (left, head))
    sheet.paste(_spectrum(mel), (left + step, head))
    for number, look in enumerate(looks, start=1):
        top = head + number * step
        _write(pen, (_GAP_PIXELS, top), [*_wrapped([look.system], 17), f"rank {look.rank}"])
        sheet.paste(fit(overlay(image, look.patches)), (left, top))
        if look.frames is None:
            _write(pen, (left + step, top), ["does not hear the sound"], colour=_SOFT)
        else:
            sheet.paste(_spectrum(mel, look.frames), (left + step, top))
    return to_png(sheet)


def overlay(image: Image.Image, relevance: NDArray[np.float32]) -> Image.Image:
    """Lay relevance (rows, columns) in 0..1 over an image: dark where there is none, bright where there is most."""
    heat = Image.fromarray(np.rint(255 * relevance).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    colours = Image.fromarray(_colours(np.asarray(heat, np.float64) / 255))
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, colours, _HEAT_OPACITY)


def fit(image: Image.Image) -> Image.Image:
    """Return an image as a square tile, whole, on grey."""
    tile = Image.new("RGB", (TILE_PIXELS, TILE_PIXELS), (225, 225, 225))
    scale = TILE_PIXELS / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    tile.paste(small, ((TILE_PIXELS - width) // 2, (TILE_PIXELS - height) // 2))
    return tile


def to_png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _spectrum(mel: NDArray[np.float32], frames: NDArray[np.float32] | None = None) -> Image.Image:
    """Draw a log-mel spectrogram, low tones below; with relevance of its frames, those without it fade."""
    size = (_SPECTRUM_PIXELS, TILE_PIXELS)
    if mel.shape[1]:
        low, high = float(mel.min()), float(mel.max())
        shade = np.flipud((mel - low) / max(high - low, 1e-6))
    else:
        shade = np.full((1, 1), 0.5)
    image = Image.fromarray(np.rint(255 * shade).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    if frames is None:
        return image.convert("RGB")
    column = Image.fromarray(np.rint(255 * frames[None]).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    colours = Image.fromarray(_colours(np.asarray(column, np.float64) / 255))
    return Image.blend(image.convert("RGB"), colours, 0.5)


def _colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn values in 0..1 into colours, (..., 3)."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, stops, _HEAT[:, band]) for band in range(3)], axis=-1).astype(np.uint8)


def _wrapped(lines: list[str], columns: int = _TEXT_COLUMNS) -> list[str]:
    most = TILE_PIXELS // _LINE_PIXELS
    return [part for line in lines for part in textwrap.wrap(line, columns, max_lines=most, placeholder=" ...")][:most]


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: list[str],
    *,
    size_pixels: int = _TEXT_PIXELS,
    colour: tuple[int, int, int] = _INK,
) -> None:
    font = ImageFont.load_default(size_pixels)
    for number, line in enumerate(lines):
        pen.text((place[0], place[1] + number * _LINE_PIXELS), line, fill=colour, font=font)
