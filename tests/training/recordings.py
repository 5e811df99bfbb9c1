"""A small corpus before extraction, and a small Whisper to hear it with: images of the scenes world, made-up sounds."""

from pathlib import Path

import numpy as np
import torch

from brewclip.audio import SAMPLE_RATE_HZ, encode_flac
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from tests.models.tiny_encoders import tiny_whisper
from tests.training.features import make_features


def write_recordings(url: str, split: str, num_images: int, *, rounds: int = 2, broken: int = -1) -> None:
    """Write `rounds` recordings of each image, 0.2 to 0.6 s; the first one of image `broken` is no sound."""
    storage, records = open_storage(f"{url}/{split}"), []
    for number in range(rounds):
        samples = [make_recording(split, number, image) for image in range(num_images)]
        if number == 0 and broken >= 0:
            samples[broken] = samples[broken]._replace(audio=b"no sound")
        records.append(write_shard(storage, shard_name(split, number, 0), number, samples))
    finish_split(storage, records, corpus="scenes", split=split, kind="recordings", num_images=num_images)


def make_recording(split: str, number: int, image: int) -> Sample:
    """Return recording `number` of an image: a tone whose height is the image's, in noise."""
    rng = np.random.default_rng([number, image, len(split)])
    time = np.arange(int(rng.integers(3200, 9600))) / SAMPLE_RATE_HZ
    sound = 0.3 * np.sin(2 * np.pi * (200 + 150 * image) * time) + rng.normal(size=len(time)) * 0.01
    facts = make_features(split, number, image)
    return facts._replace(audio=encode_flac(sound.astype(np.float32)), features=None)


def save_tiny_whisper(folder: Path) -> str:
    """Save a Whisper of two layers as OpenAI's file; return the name that loads its encoder."""
    whisper = tiny_whisper()
    path = folder / "tiny.pt"
    torch.save({"dims": vars(whisper.dims), "model_state_dict": whisper.state_dict()}, path)
    return f"whisper-{path}"
