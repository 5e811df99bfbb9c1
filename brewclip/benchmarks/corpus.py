"""Inputs of the model benchmarks: spoken captions of the scenes world or of a split, and a split of features.

Features are random numbers of the size of Whisper base's, so that a split is written in seconds.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brewclip.audio import decode_audio, encode_flac
from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import Sample, array_to_npy
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.scenes import captions, voices
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, scene_generator, world_seed

AUDIO_DIM = 512  # of Whisper base
_FRAMES = (120, 220)  # 2.4 to 4.4 s, as captions are
_SEED_NAME = "scenes/benchmark"
_DISTINCT = 64  # distinct pairs; others repeat them, as rendering takes longer than training on them
_SIDE_PIXELS = 192


@dataclass(frozen=True)
class Recording:
    """A spoken caption.

    Attributes:
        text: the spoken text.
        waveform: float32 mono at 16 kHz.
    """

    text: str
    waveform: NDArray[np.float32]


def make_recordings(count: int, noise_snr_db: float = 99.0) -> list[Recording]:
    """Synthesize captions of scenes; below 60 dB babble is mixed in."""
    made = []
    for index in range(count):
        rng = scene_generator(world_seed(_SEED_NAME), index, "voice")
        text = _caption(index)
        waveform = voices.speak(text, voices.sample_voice(rng), rng)
        made.append(Recording(text, voices.add_noise(waveform, noise_snr_db, rng) if noise_snr_db < 60 else waveform))
    return made


def load_recordings(url: str, count: int) -> list[Recording]:
    """Load recordings of a split whose text is known, evenly spaced over the split.

    Raises:
        UserError: if it has none.
    """
    manifest = open_manifest(url)
    reader = SplitReader(manifest)
    loaded = []
    for number in range(0, len(manifest), max(1, len(manifest) // count)):
        shard = int(manifest.first_sample.searchsorted(number, side="right")) - 1
        ((_, sample),) = reader.load(Extent(shard, number - int(manifest.first_sample[shard]), 1))
        if isinstance(sample, Sample) and sample.audio is not None and sample.metadata.get("text"):
            loaded.append(Recording(str(sample.metadata["text"]), decode_audio(sample.audio)))
    if not loaded:
        raise UserError(f"{url} has no recording with a text: name a split of recordings as a recipe wrote it")
    return loaded[:count]


def write_features(url: str, split: str, num_pairs: int) -> None:
    """Write a split of features below `url`, in one round."""
    parts = [_make_parts(index) for index in range(min(num_pairs, _DISTINCT))]
    samples = (
        Sample(f"{split}{n:06d}-0", _metadata(split, n, text), image, features=features)
        for n, (text, image, features) in ((n, parts[n % len(parts)]) for n in range(num_pairs))
    )
    _write_split(url, split, "features", samples, num_pairs, image_side_pixels=_SIDE_PIXELS)


def write_captions(url: str, split: str, count: int) -> None:
    """Write a split of spoken captions below `url`, as a recipe would, in one round; 64 are distinct."""
    made, image = make_recordings(min(count, _DISTINCT)), _make_parts(0)[1]
    samples = (
        Sample(f"{split}{n:06d}-0", _metadata(split, n, one.text), image, audio=encode_flac(one.waveform))
        for n, one in ((n, made[n % len(made)]) for n in range(count))
    )
    _write_split(url, split, "recordings", samples, count)


def _write_split(url: str, split: str, kind: str, samples: Iterable[Sample], count: int, **details: int) -> None:
    """Write a split of one shard, each of whose samples has its own image."""
    storage = open_storage(f"{url}/{split}")
    record = write_shard(storage, shard_name(split, 0, 0), 0, samples)
    assert record is not None
    finish_split(storage, [record], corpus="benchmark", split=split, kind=kind, num_images=count, details=details)


def _caption(index: int) -> str:
    scene = sample_scene(world_seed(_SEED_NAME), index)
    return captions.read_captions(scene, scene_generator(world_seed(_SEED_NAME), index, "captions"), 1)[0]


def _make_parts(index: int) -> tuple[str, bytes, bytes]:
    """Return transcript, image and features."""
    image, rng = io.BytesIO(), np.random.default_rng(index)
    draw_scene(sample_scene(world_seed(_SEED_NAME), index), _SIDE_PIXELS).save(image, "JPEG", quality=95)
    frames = rng.standard_normal((int(rng.integers(*_FRAMES)), AUDIO_DIM)).astype(np.float16)
    return _caption(index), image.getvalue(), array_to_npy(frames)


def _metadata(split: str, number: int, text: str) -> dict[str, object]:
    image_id = f"{split}{number:06d}"
    fields = {"image_id": image_id, "caption_id": f"{image_id}-0", "split": split, "duration_seconds": 3.4}
    return fields | {"text": text, "transcript": text}
