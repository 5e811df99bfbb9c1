"""Figures as PNG: galleries of the best and worst queries of a system, and relevance maps."""

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
    """One query of a gallery.

    Attributes:
        lines: text to the left of the images.
        right: the correct image.
        found: the nearest images, nearest first.
        right_place: index of the correct image among them, or -1.
    """

    lines: list[str]
    right: Image.Image
    found: list[Image.Image]
    right_place: int


@dataclass(frozen=True)
class RelevanceMaps:
    """Relevance maps of one system for one query.

    Attributes:
        system: name of the system.
        rank: rank of the correct image.
        patches: (rows, columns) relevance of the image patches, 0..1.
        frames: (T,) relevance of the speech frames, 0..1, or None without an acoustic channel.
    """

    system: str
    rank: int
    patches: NDArray[np.float32]
    frames: NDArray[np.float32] | None


def draw_gallery(title: str, rows: list[GalleryRow]) -> bytes:
    """Draw one row per query: text, correct image, nearest images with the correct one framed; return a PNG."""
    step = TILE_PIXELS + _GAP_PIXELS
    most = max(len(row.found) for row in rows)
    canvas = Image.new("RGB", (_GAP_PIXELS + (3 + most) * step + _GAP_PIXELS, 40 + len(rows) * step), _PAPER)
    pen = ImageDraw.Draw(canvas)
    _write(pen, (_GAP_PIXELS, 10), [title], size_pixels=18)
    for number, row in enumerate(rows):
        top = 40 + number * step
        _write(pen, (_GAP_PIXELS, top), _wrapped(row.lines))
        left = _GAP_PIXELS + 2 * step
        canvas.paste(fit(row.right), (left, top))
        for place, image in enumerate(row.found):
            left += step + (_GAP_PIXELS if place == 0 else 0)
            canvas.paste(fit(image), (left, top))
            if place == row.right_place:
                pen.rectangle(
                    (left - 4, top - 4, left + TILE_PIXELS + 3, top + TILE_PIXELS + 3), outline=_GREEN, width=4
                )
    return to_png(canvas)


def draw_relevance(lines: list[str], image: Image.Image, mel: NDArray[np.float32], maps: list[RelevanceMaps]) -> bytes:
    """Draw the relevance maps of one query over its image and spectrogram, one row per system; return a PNG.

    Args:
        lines: text above the rows.
        image: square image as the systems receive it.
        mel: (bands, 2 * T or less) log-mel spectrogram; without columns, frame relevance is drawn on grey.
        maps: one per system.
    """
    step, rows = TILE_PIXELS + _GAP_PIXELS, len(maps) + 1
    head = 16 + _LINE_PIXELS * len(_wrapped(lines, 110))
    left = 2 * _GAP_PIXELS + step
    canvas = Image.new("RGB", (left + step + _SPECTRUM_PIXELS + _GAP_PIXELS, head + rows * step), _PAPER)
    pen = ImageDraw.Draw(canvas)
    _write(pen, (_GAP_PIXELS, 10), _wrapped(lines, 110))
    _write(pen, (_GAP_PIXELS, head), ["input"])
    canvas.paste(fit(image), (left, head))
    canvas.paste(_spectrum(mel), (left + step, head))
    for number, own in enumerate(maps, start=1):
        top = head + number * step
        _write(pen, (_GAP_PIXELS, top), [*_wrapped([own.system], 17), f"rank {own.rank}"])
        canvas.paste(fit(overlay(image, own.patches)), (left, top))
        if own.frames is None:
            _write(pen, (left + step, top), ["no acoustic channel"], colour=_SOFT)
        else:
            canvas.paste(_spectrum(mel, own.frames), (left + step, top))
    return to_png(canvas)


def overlay(image: Image.Image, relevance: NDArray[np.float32]) -> Image.Image:
    """Overlay relevance (rows, columns) in 0..1 on an image: dark for 0, bright for 1."""
    heat = Image.fromarray(np.rint(255 * relevance).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    colours = Image.fromarray(_colours(np.asarray(heat, np.float64) / 255))
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, colours, _HEAT_OPACITY)


def fit(image: Image.Image) -> Image.Image:
    """Scale an image to fit into a square tile with grey background."""
    tile = Image.new("RGB", (TILE_PIXELS, TILE_PIXELS), (225, 225, 225))
    scale = TILE_PIXELS / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    tile.paste(small, ((TILE_PIXELS - width) // 2, (TILE_PIXELS - height) // 2))
    return tile


def to_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _spectrum(mel: NDArray[np.float32], frames: NDArray[np.float32] | None = None) -> Image.Image:
    """Draw a log-mel spectrogram, low frequencies at the bottom, optionally blended with frame relevance."""
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
    """Map values in 0..1 to colours, (..., 3)."""
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
