"""Small splits for tests: samples of random bytes, in shards of given sizes."""

import numpy as np

from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage


def make_sample(round_number: int, number: int, *, size_bytes: int = 300) -> Sample:
    """Return the caption `round_number` of image `number`, with random bytes for an image."""
    rng = np.random.default_rng((round_number, number))
    metadata = {
        "image_id": f"image{number}",
        "caption_id": f"image{number}-{round_number}",
        "split": "train",
        "duration_seconds": 1.5,
    }
    return Sample(f"image{number}-{round_number}", metadata, image=rng.bytes(int(rng.integers(1, size_bytes))))


def write_split(url: str, rounds: list[list[int]], *, size_bytes: int = 300) -> Manifest:
    """Write a split whose round k has shards of the sizes `rounds[k]`."""
    storage = open_storage(url)
    records = []
    for round_number, sizes in enumerate(rounds):
        starts = np.concatenate([[0], np.cumsum(sizes)])
        for number, (start, count) in enumerate(zip(starts, sizes, strict=False)):
            samples = (make_sample(round_number, int(start) + i, size_bytes=size_bytes) for i in range(count))
            record = write_shard(storage, shard_name("train", round_number, number), round_number, samples)
            assert record is not None
            records.append(record)
    finish_split(storage, records, corpus="test", split="train", kind="recordings", num_images=sum(rounds[0]))
    return open_manifest(url)
