"""A small corpus with sound for tests of reports and figures: recordings, and their features."""

from collections.abc import Collection
from typing import Any

import numpy as np

from brewclip.audio import SAMPLE_RATE_HZ, encode_flac
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from tests.training.features import make_features


def write_spoken(
    url: str,
    split: str,
    num_images: int,
    *,
    texts: dict[int, str] | None = None,
    unheard: Collection[int] = (),
    metadata: dict[int, dict[str, Any]] | None = None,
) -> None:
    """Write one tone of half a second and more for each image below `url`, and features in `url`/whisper-base.

    Args:
        url: of the corpus.
        split: its name.
        num_images: images 0, 1, ..., as `make_features` draws them.
        texts: what was said and heard of some images.
        unheard: images whose recordings the extraction left out.
        metadata: more fields of some images' recordings.
    """
    made = [make_features(split, 0, number) for number in range(num_images)]
    more = dict(metadata or {})
    for number, text in (texts or {}).items():
        more[number] = more.get(number, {}) | {"text": text, "transcript": text}
    for number, fields in more.items():
        made[number] = made[number]._replace(metadata={**made[number].metadata, **fields})
    recordings = [
        Sample(one.key, one.metadata, one.image, audio=encode_flac(_tone(number))) for number, one in enumerate(made)
    ]
    heard = [one for number, one in enumerate(made) if number not in unheard]
    for kind, folder, samples in (("recordings", url, recordings), ("features", f"{url}/whisper-base", heard)):
        storage = open_storage(f"{folder}/{split}")
        record = write_shard(storage, shard_name(split, 0, 0), 0, samples)
        assert record is not None
        finish_split(storage, [record], corpus="scenes", split=split, kind=kind, num_images=len(samples))


def _tone(number: int) -> np.ndarray:
    seconds = np.arange(int((0.5 + 0.1 * number) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return 0.3 * np.sin(2 * np.pi * 220 * seconds)
