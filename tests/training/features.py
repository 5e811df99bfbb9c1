"""A small split of features for training tests: real images of the scenes world, made-up Whisper frames."""

import io
from collections.abc import Collection

import numpy as np

from brewclip.data.schema import Sample, array_to_npy
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage

AUDIO_DIM = 32


def write_features(
    url: str,
    split: str,
    num_images: int,
    *,
    per_shard: int = 20,
    rounds: int = 2,
    broken: Collection[int] = (),
    alternatives: int = 0,
) -> None:
    """Write `rounds` captions for each image; frames carry the number of the image, so there is much to learn.

    Of the images in `broken`, the first caption's JPEG cannot be decoded.
    """
    storage = open_storage(f"{url}/{split}")
    records = []
    for number in range(rounds):
        for shard, start in enumerate(range(0, num_images, per_shard)):
            picks = range(start, min(num_images, start + per_shard))
            samples = (make_features(split, number, image, broken=number == 0 and image in broken) for image in picks)
            records.append(write_shard(storage, shard_name(split, number, shard), number, samples))
    finish_split(
        storage,
        records,
        corpus="scenes",
        split=split,
        kind="features",
        num_images=num_images,
        details={"alternatives": alternatives},
    )


def make_features(split: str, number: int, image: int, *, broken: bool = False) -> Sample:
    """Return caption `number` of an image."""
    from brewclip.scenes.drawing import draw_scene
    from brewclip.scenes.world import sample_scene, world_seed

    rng = np.random.default_rng([number, image, len(split)])
    buffer = io.BytesIO()
    draw_scene(sample_scene(world_seed(f"scenes/{split}"), image), 96).save(buffer, "JPEG")
    frames = rng.normal(size=(int(rng.integers(3, 9)), AUDIO_DIM)) * 0.1
    frames[:, image % AUDIO_DIM] += 2.0
    image_id = f"{split}{image}"
    return Sample(
        f"{image_id}-{number}",
        {
            "image_id": image_id,
            "caption_id": f"{image_id}-{number}",
            "split": split,
            "duration_seconds": 1.0,
            "text": f"scene {image}",
            "transcript": f"a scene of number {image}",
            "greedy_transcript": f"the scene of number {image}",
            "alternatives": [[f"the scene of number {image}", -0.4], [f"seen number {image}", -0.9]][: 1 + image % 2],
        },
        image=b"no image" if broken else buffer.getvalue(),
        features=array_to_npy(frames.astype(np.float16)),
    )
