"""Images made to cost memory: what they show costs what the result needs, or they are rejected with the cause."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from brewclip.data import images as images
from brewclip.data.image_modes import to_rgb
from brewclip.data.images import decode_image, reduce_image
from brewclip.data.schema import BadSample

LIMITED = """
import io, json, resource, sys
import numpy as np
from PIL import Image
from brewclip.data.images import decode_image, reduce_image
from brewclip.data.schema import BadSample

with open("/proc/self/statm") as file:
    taken_bytes = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + 10**9, taken_bytes + 10**9))
answers = []
for size in ((1, 65_535), (65_535, 1), (1, 1_000_000), (1_000_000, 1)):
    buffer = io.BytesIO()
    Image.new("L", size, 77).save(buffer, "PNG")
    for transform in ("crop", "squash", "letterbox"):
        square = decode_image(buffer.getvalue(), 448, transform)
        answers.append(square.shape == (3, 448, 448) and bool((square == 77).any()))
    try:
        reduce_image(buffer.getvalue(), 336, exact=False)
    except BadSample as error:
        answers.append(error.cause)
print(json.dumps(answers))
"""


def test_extreme_aspect_ratios_cost_what_the_square_needs():
    """A 1 x 65535 image took 9 GB; all of these together get 1 GB."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {True, "image"}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_long_images_are_cropped_as_if_they_had_been_resized_whole(interpolation, monkeypatch):
    rng = np.random.default_rng(0)
    most = 0
    for _ in range(60):
        short, ratio = int(rng.integers(1, 12)), rng.uniform(17, 150)
        shape = (short, round(short * ratio))[:: rng.choice([-1, 1])]
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(buffer, "PNG")
        for side in (16, 64):
            monkeypatch.setattr(images, "_LONG_ASPECT", 16)
            part = decode_image(buffer.getvalue(), side, interpolation=interpolation).astype(int)
            monkeypatch.setattr(images, "_LONG_ASPECT", 10**9)
            whole = decode_image(buffer.getvalue(), side, interpolation=interpolation).astype(int)
            most = max(most, int(np.abs(part - whole).max()))
    assert most <= 2, "noise, whose overshoot is clipped in another order"


def test_what_no_jpeg_can_hold_is_rejected_with_its_size():
    buffer = io.BytesIO()
    Image.new("L", (2, 65_501)).save(buffer, "PNG")
    with pytest.raises(BadSample, match="2 x 65501 pixels; a JPEG has at most 65500"):
        reduce_image(buffer.getvalue(), 336, exact=True)


@pytest.mark.parametrize("shape", [(37, 29), (1, 500), (500, 1)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "I;16", "F"])
def test_parts_show_what_the_whole_does(mode, shape, monkeypatch):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, shape, dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(rng.uniform(0, 1, shape).astype(np.float32))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*shape, 4), dtype=np.uint8), "RGBA").convert(mode)
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr("brewclip.data.image_modes._PART_PIXELS", 64)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), whole)


def test_one_part_that_is_no_number_is_enough(monkeypatch):
    monkeypatch.setattr("brewclip.data.image_modes._PART_PIXELS", 64)
    values = np.full((40, 40), 0.5, np.float32)
    values[39, 39] = np.nan
    with pytest.raises(BadSample, match="nan"):
        to_rgb(Image.fromarray(values))
