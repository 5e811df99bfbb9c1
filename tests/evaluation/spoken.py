"""A small corpus with sound for tests of reports and figures: recordings, and their features."""

from collections.abc import Collection
from typing import Any

import numpy as np

from brewclip.audio import SAMPLE_RATE_HZ, encode_flac
from brewclip.corpora.extraction import plan_parts
from brewclip.data.manifest import open_manifest
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
    _write(f"{url}/{split}", split, "recordings", {shard_name(split, 0, 0): recordings})
    features = {}
    for part in plan_parts(open_manifest(f"{url}/{split}")):
        numbers = range(part.extent.first, part.extent.first + part.extent.count)
        features[part.name] = [made[number] for number in numbers if number not in unheard]
    _write(f"{url}/whisper-base/{split}", split, "features", features)


def _write(url: str, split: str, kind: str, shards: dict[str, list[Sample]]) -> None:
    storage = open_storage(url)
    records = [write_shard(storage, name, 0, samples) for name, samples in shards.items()]
    num_images = sum(map(len, shards.values()))
    finish_split(storage, records, corpus="scenes", split=split, kind=kind, num_images=num_images)


def _tone(number: int) -> np.ndarray:
    seconds = np.arange(int((0.5 + 0.1 * number) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return 0.3 * np.sin(2 * np.pi * 220 * seconds)
