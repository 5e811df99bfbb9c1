"""Samples of the queries of an evaluation (texts, images, original recordings) and their nearest images."""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from brewclip.config import Config
from brewclip.corpora.extraction import plan_parts
from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import Sample
from brewclip.errors import ManifestError
from brewclip.evaluation.embed import Embeddings

Place = tuple[int, int]  # shard and index of a sample in its split
_SAMPLES_AT_ONCE = 16  # consecutive samples per request; a sample with features has about 200 kB
_THREADS = 8
_ROWS_AT_ONCE = 256  # recordings per block of scores: 100 MB for 100,000 images


class QuerySamples:
    """Samples of the split that a system reads, and of the corpus that it was extracted from.

    Args:
        config: settings of the system.
        split: evaluated split.
    """

    def __init__(self, config: Config, split: str) -> None:
        self.features = SplitReader(open_manifest(f"{config.splits_url}/{split}"))
        self.recordings: SplitReader | None = None
        self._source_of: dict[str, Extent] = {}
        with contextlib.suppress(ManifestError):  # recordings may be removed after extraction
            manifest = open_manifest(f"{config.corpus_url}/{split}", retry_seconds=10)
            self.recordings = SplitReader(manifest)
            if config.splits_url == config.corpus_url:  # a system that reads recordings
                counts = enumerate(manifest.num_samples.tolist())
                self._source_of = {manifest.name_of(shard): Extent(shard, 0, count) for shard, count in counts}
            else:
                self._source_of = {part.name: part.extent for part in plan_parts(manifest)}

    def iter_samples(self, places: Iterable[Place]) -> Iterator[tuple[Place, Sample]]:
        """Yield the extracted samples at the given places, in sorted order; damaged ones are skipped."""
        wanted = sorted(set(places))

        def load(extent: Extent) -> list[tuple[Place, Sample]]:
            found = self.features.load(extent)
            return [((extent.shard, number), one) for number, one in found if isinstance(one, Sample)]

        with ThreadPoolExecutor(_THREADS) as pool:
            for found in pool.map(load, _extents(wanted)):
                yield from found

    def sound(self, place: Place, key: str) -> bytes:
        """Return the FLAC of a recording, or b"" if it no longer exists.

        A shard of features has the samples of its part of the corpus in their order, without the recordings that
        extraction could not use: in the corpus a recording has the same index or a slightly larger one.
        """
        manifest, reader = self.features.manifest, self.recordings
        source = self._source_of.get(manifest.name_of(place[0]))
        if reader is None or source is None:
            return b""
        num_left_out = source.count - int(manifest.num_samples[place[0]])
        for index in range(place[1], min(source.count, place[1] + num_left_out + 1)):
            for _, sample in reader.load(Extent(source.shard, source.first + index, 1)):
                if isinstance(sample, Sample) and sample.key == key:
                    return sample.audio or b""
        return b""


def image_places(embeddings: Embeddings) -> dict[str, Place]:
    """Return the first place of each image of a split."""
    places: dict[str, Place] = {}
    for image_id, place in zip(embeddings.speech_image_ids, embeddings.places, strict=True):
        places.setdefault(image_id, place)
    return places


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of the integers 0..count-1, evenly spaced from 0."""
    number = min(count, most)
    return [place * count // number for place in range(number)]


def _extents(places: list[Place]) -> Iterator[Extent]:
    """Merge consecutive places, in order, into extents of up to `_SAMPLES_AT_ONCE` samples."""
    start = 0
    while start < len(places):
        (shard, index), stop = places[start], start + 1
        while stop < len(places) and stop - start < _SAMPLES_AT_ONCE and places[stop] == (shard, index + stop - start):
            stop += 1
        yield Extent(shard, index, stop - start)
        start = stop


def nearest_images(embeddings: Embeddings, rows: list[int], count: int) -> tuple[list[list[str]], NDArray[np.float32]]:
    """Find the nearest images of some recordings.

    Args:
        embeddings: embeddings of the split.
        rows: rows of the recordings.
        count: images per recording.

    Returns:
        The ids of the nearest images of each recording, nearest first; and (n,) margins, the cosine of the correct
        image minus that of the best wrong one: positive where the correct image is ranked first.
    """
    images = embeddings.images / np.linalg.norm(embeddings.images, axis=1, keepdims=True)
    column_of = {image_id: column for column, image_id in enumerate(embeddings.image_ids)}
    nearest: list[list[str]] = []
    margins = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = rows[start : start + _ROWS_AT_ONCE]
        speech = embeddings.speech[block] / np.linalg.norm(embeddings.speech[block], axis=1, keepdims=True)
        cosines = speech @ images.T  # (n, G)
        first = np.argpartition(-cosines, min(count, cosines.shape[1]) - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(cosines, first, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(first, order, axis=1)
        nearest += [[embeddings.image_ids[column] for column in row] for row in top]
        correct = (np.arange(len(block)), [column_of[embeddings.speech_image_ids[row]] for row in block])
        correct_cosines = cosines[correct]
        cosines[correct] = -np.inf
        margins[start : start + len(block)] = correct_cosines - cosines.max(axis=1)
    return nearest, margins
