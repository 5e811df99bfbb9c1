"""Splits of features for the benchmarks of reading, and the decoding of their samples.

Images are noise over a gradient, which decode like photographs; features are random numbers.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from PIL import Image

from brewclip.data.images import open_image
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.schema import Sample, array_to_npy, npy_to_array
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.data.stream import Stream

_DISTINCT = 64  # distinct samples; a new image for each would take minutes


@dataclass(frozen=True)
class SampleSize:
    """Side of the image in pixels, frames and width of the features."""

    side_pixels: int
    num_frames: int
    feature_dim: int


SIZES = {"small": SampleSize(32, 8, 64), "large": SampleSize(224, 100, 384), "paper": SampleSize(224, 200, 512)}
"""`paper`: a caption of Flickr8k of 4 s by Whisper base."""


def write_split(url: str, size: SampleSize, num_samples: int, samples_per_shard: int) -> Manifest:
    """Write a split of features and return its manifest."""
    storage = open_storage(url)
    rng = np.random.default_rng(0)
    made = [_make_parts(rng, size) for _ in range(_DISTINCT)]
    records = []
    for number, first in enumerate(range(0, num_samples, samples_per_shard)):
        numbers = range(first, min(first + samples_per_shard, num_samples))
        samples = (Sample(f"{n:08d}-0", _metadata(n), *made[n % len(made)]) for n in numbers)
        record = write_shard(storage, shard_name("train", 0, number), 0, samples)
        assert record is not None
        records.append(record)
    finish_split(storage, records, corpus="benchmark", split="train", kind="features", num_images=num_samples)
    return open_manifest(url)


def _make_parts(rng: np.random.Generator, size: SampleSize) -> tuple[bytes, None, bytes]:
    """Return an image, no recording, and features."""
    ramp = np.linspace(0, 200, size.side_pixels)[:, None, None]
    noise = rng.integers(0, 55, (size.side_pixels // 4, size.side_pixels // 4, 3)).repeat(4, 0).repeat(4, 1)
    image = io.BytesIO()
    Image.fromarray((ramp + noise).astype(np.uint8)).save(image, "JPEG", quality=90)
    features = rng.standard_normal((size.num_frames, size.feature_dim)).astype(np.float16)
    return image.getvalue(), None, array_to_npy(features)


def _metadata(number: int) -> dict[str, Any]:
    fields = {"image_id": f"{number:08d}", "caption_id": f"{number:08d}-0", "split": "train", "duration_seconds": 2.0}
    return fields | {"transcript": "a red circle above two small green squares", "avg_logprob": -0.25}


def decode_sample(sample: Sample) -> dict[str, Any]:
    """Decode a sample of the stream as `decode_parts` does; its metadata are parsed already."""
    assert sample.features is not None
    return {"jpg": np.asarray(open_image(sample.image)), "npy": npy_to_array(sample.features), "json": sample.metadata}


def decode_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Decode a sample of a peer by the same decoders as the stream's.

    Args:
        parts: bytes of the members by their suffix, as WebDataset yields them.

    Returns:
        `jpg`, uint8 (height, width, 3); `npy`, float16 (frames, dim); `json`, a dictionary.
    """
    image, features = np.asarray(open_image(parts["jpg"])), npy_to_array(parts["npy"])
    return {"jpg": image, "npy": features, "json": orjson.loads(parts["json"])}


def build_stream(
    manifest: Manifest,
    decode: Callable[[Sample], Any],
    global_batch_size: int,
    *,
    memory_bytes: int,
    num_threads: int,
) -> Stream[Any]:
    """Build the training stream of one worker; a sample that cannot be decoded is an error."""
    order = SampleOrder(manifest, seed=0, global_batch_size=global_batch_size)
    rejections = Rejections(manifest.url, max_fraction=0.0)
    return Stream(SplitReader(manifest), order, decode, rejections, memory_bytes=memory_bytes, num_threads=num_threads)
