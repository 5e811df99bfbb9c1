"""Images of every mode and format become what a viewer shows, or are rejected with a word on why."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from brewclip.data.images import open_image
from brewclip.data.schema import BadSample
from brewclip.serving.media import read_image

RAMP = np.linspace(0, 1, 24).reshape(4, 6)
GREY = np.round(255 * RAMP).astype(np.uint8)
ORIENTATION = 0x0112


def file_of(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def shown(data: bytes) -> np.ndarray:
    """Return the pixels (H, W, 3) as numbers that can be subtracted."""
    image = open_image(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def shows_grey(data: bytes, expected: np.ndarray = GREY, within: int = 0) -> bool:
    return bool(np.abs(shown(data) - expected[..., None].astype(int)).max() <= within)


def png_of_16_bits(colour_type: int, samples: np.ndarray) -> bytes:
    """Return a PNG of 16-bit samples (H, W, C) by the letter of its standard; Pillow writes grey ones only."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(values: np.ndarray, *, bits: int = 16, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Return a grey little-endian TIFF of one strip."""
    pixels = values.tobytes()
    entries = [
        *((256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric)),
        *((273, 4, 8), (277, 3, 1), (278, 4, values.shape[0]), (279, 4, len(pixels)), (339, 3, sample_format)),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, value)
                                                           for tag, kind, value in entries)  # fmt: skip
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + struct.pack("<I", 0)


WIDE = np.round(65535 * RAMP).astype(np.uint16)
GREY_FILES = {
    "PNG, 8 bits": file_of(Image.fromarray(GREY), "PNG"),
    "PNG, 16 bits": file_of(Image.fromarray(WIDE), "PNG"),
    "PNG, 16 bits RGB": png_of_16_bits(2, np.repeat(WIDE[..., None], 3, axis=2)),
    "PGM, 16 bits": b"P5 6 4 65535\n" + WIDE.astype(">u2").tobytes(),
    "PGM, 10 bits": b"P5 6 4 1023\n" + np.round(1023 * RAMP).astype(">u2").tobytes(),
    "TIFF, 8 bits": file_of(Image.fromarray(GREY), "TIFF"),
    "TIFF, 16 bits": tiff(WIDE),
    "TIFF, 16 bits, big endian": file_of(Image.fromarray(WIDE.astype(">u2")), "TIFF"),
    "TIFF, 16 bits, zero is white": tiff(65535 - WIDE, photometric=0),
    "TIFF, float": file_of(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "JPEG": file_of(Image.fromarray(GREY), "JPEG", quality=100),
    "JPEG 2000": file_of(Image.fromarray(GREY), "JPEG2000"),
    "WebP": file_of(Image.fromarray(GREY), "WEBP", lossless=True),
    "AVIF": file_of(Image.fromarray(GREY), "AVIF", quality=100),
    "GIF": file_of(Image.fromarray(GREY), "GIF"),
    "BMP": file_of(Image.fromarray(GREY), "BMP"),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_grey_is_the_same_grey_from_every_file(name):
    within = 2 if name in ("JPEG", "AVIF") else 1 if "RGB" in name or "10 bits" in name else 0
    assert shows_grey(GREY_FILES[name], within=within)


def test_bits_are_white_or_black():
    bits = RAMP > 0.5
    for form in ("PNG", "TIFF", "BMP"):
        assert shows_grey(file_of(Image.fromarray(bits), form), np.where(bits, 255, 0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file_of(Image.fromarray(3 * RAMP.astype(np.float32)), "TIFF"), "float pixels from 0 to 3 .*scale to 0..1"),
        (file_of(Image.fromarray(RAMP.astype(np.float32) - 1), "TIFF"), "float pixels from -1 to 0"),
        (file_of(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "float pixels from nan"),
        (file_of(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "32-bit integer pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify an image; JPEG, PNG"),
        (b"", "cannot identify an image"),
    ],
)
def test_what_no_viewer_could_agree_on_is_a_counted_rejection(data, message):
    with pytest.raises(BadSample, match=message) as caught:
        open_image(data)
    assert caught.value.cause == "image" and "0x" not in str(caught.value), "the same words for the same fault"


CMYK = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]] * 8, np.uint8).repeat(8, axis=1)
INKS = np.array([[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_inks_are_seen_as_colours(form):
    """White paper, cyan, red of magenta and yellow, black; a JPEG holds them inverted and says that Adobe wrote it."""
    data = file_of(Image.fromarray(CMYK, "CMYK"), form, **({"quality": 100} if form == "JPEG" else {}))
    assert (b"Adobe" in data) == (form == "JPEG")
    assert np.abs(shown(data)[4, 4::8] - INKS).max() <= 2


def test_lab_and_ycbcr_are_seen_as_colours():
    assert shown(file_of(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF"))[0, 0].min() >= 250
    assert np.abs(shown(file_of(Image.new("YCbCr", (1, 1), (76, 85, 255)), "TIFF"))[0, 0] - (255, 0, 0)).max() <= 2


def transparent(mode: str) -> Image.Image:
    """Return red at alpha 255, 128 and 0, or grey 80 where the mode has no colour."""
    image = Image.new("RGBA", (3, 1), (200, 0, 0) if mode != "LA" else (80, 80, 80))
    for x, alpha in enumerate((255, 128, 0)):
        image.putpixel((x, 0), (*image.getpixel((x, 0))[:3], alpha))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (file_of(transparent("RGBA"), "PNG"), [(200, 0, 0), (227, 127, 127), (255, 255, 255)]),
        (file_of(transparent("RGBA"), "WEBP", lossless=True), [(200, 0, 0), (227, 127, 127), (255, 255, 255)]),
        (file_of(transparent("RGBA"), "TIFF"), [(200, 0, 0), (227, 127, 127), (255, 255, 255)]),
        (file_of(transparent("LA"), "PNG"), [(80, 80, 80), (167, 167, 167), (255, 255, 255)]),
    ],
)
def test_transparency_is_composited_on_white(data, expected):
    np.testing.assert_allclose(shown(data)[0], expected, atol=1)


def test_a_palette_and_its_transparent_colour():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for form in ("PNG", "GIF"):
        assert shown(file_of(palette, form))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
        assert shown(file_of(palette, form, transparency=0))[0].tolist() == [[255, 255, 255], [200, 100, 50]]
    assert shown(file_of(palette, "PNG", transparency=b"\xff\x80"))[0].tolist()[1] == [227, 177, 152]


def test_one_transparent_colour_without_a_palette():
    data = file_of(Image.fromarray(GREY).convert("RGB"), "PNG", transparency=(0, 0, 0))
    assert shown(data)[0, :2].tolist() == [[255] * 3, [11] * 3]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "method"),
    [
        *((1, None), (2, "FLIP_LEFT_RIGHT"), (3, "ROTATE_180"), (4, "FLIP_TOP_BOTTOM")),
        *((5, "TRANSPOSE"), (6, "ROTATE_270"), (7, "TRANSVERSE"), (8, "ROTATE_90")),
    ],
)
def test_images_are_turned_once_as_their_camera_says(form, orientation, method):
    image = Image.fromarray(np.kron(GREY[:2, :3] * 10, np.ones((16, 16), np.uint8)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    data = file_of(image, form, exif=exif, **options)
    upright = np.asarray(image.transpose(Image.Transpose[method]) if method else image)
    assert shows_grey(data, upright, within=3)
    in_memory = read_image(Image.open(io.BytesIO(data)))
    assert shows_grey(in_memory, upright, within=3)


def test_images_in_memory_are_seen_as_files_are():
    assert shows_grey(read_image(Image.fromarray(WIDE)))
    np.testing.assert_allclose(shown(read_image(transparent("RGBA")))[0, 2], 255)


def test_the_first_of_several_frames_is_taken():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert shows_grey(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
