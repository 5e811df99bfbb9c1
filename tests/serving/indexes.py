"""A small encoder for tests of the index: the mean colour of an image is its vector."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brewclip.serving.index import ImageIndex
from brewclip.serving.index.build import BuildReport, build_index
from brewclip.serving.index.sources import list_images


class ColourEncoder:
    """Embeds an image by its colours, and counts how many it was given."""

    name = "colours"
    embed_dim = 8
    reads_text = False

    def __init__(self, identity: dict[str, Any] | None = None) -> None:
        self.identity = identity or {"frozen_sha256": {"colours": "0" * 64}, "step": 1}
        self.num_encoded = 0

    def transform_image(self, image):
        return np.asarray(image.resize((4, 4))).transpose(2, 0, 1)

    def encode_transformed(self, images):
        self.num_encoded += len(images)
        rows = np.stack([image.reshape(-1)[: self.embed_dim] for image in images]).astype(np.float32) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_images(folder: Path, *numbers: int) -> None:
    """Write images of noise, each of its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def build(
    folder: Path, out: Path, encoder: ColourEncoder | None = None, **options: Any
) -> tuple[ImageIndex, BuildReport]:
    """Build an index of a folder with a `ColourEncoder`."""
    return build_index(encoder or ColourEncoder(), list_images([str(folder)]), out, **options)
