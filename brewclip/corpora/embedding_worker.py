"""Ray actor that embeds the texts and images of a shard with a frozen CLIP."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brewclip.config import Config
from brewclip.data.batches import PairDecoder, normalised_images
from brewclip.data.embeddings import EmbeddingKey, array_name
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, Sample, array_to_npy
from brewclip.data.storage import exists, open_storage
from brewclip.data.texts import readings_of
from brewclip.errors import UserError
from brewclip.factory import build_decoder, check_images
from brewclip.models.towers import FrozenTowers
from brewclip.pretrained.clip_identity import identify_clip
from brewclip.pretrained.load import LoadedClip, load_clip

_BATCH = 64


class ShardEmbedder:
    """A frozen CLIP that embeds shard after shard, in float32.

    Args:
        num_threads: of torch.
        config: names the CLIP, and how texts and images are prepared.
    """

    def __init__(self, num_threads: int, config: Config) -> None:
        torch.set_num_threads(num_threads)
        self.config = config
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._parts: tuple[LoadedClip, PairDecoder, FrozenTowers] | None = None

    def identity(self) -> tuple[dict[str, Any], int]:
        """Return the identity of the CLIP and the width of its embeddings."""
        clip, _, towers = self._loaded()
        return asdict(identify_clip(clip)), towers.embed_dim

    def embed(self, url: str, keys: list[EmbeddingKey], shard: int) -> dict[str, int]:
        """Embed what the keys name of a shard, unless it is there; return counts.

        Raises:
            UserError: if the CLIP cannot be loaded, or the images are too small for it.
        """
        manifest = open_manifest(url)
        check_images(manifest, self._loaded()[0])
        counts = {"truncated_texts": 0, "unusable": 0}
        name, samples = array_name(manifest, shard), None
        for key in keys:
            storage = open_storage(f"{url}/{key.folder}")
            if exists(storage, name):
                continue
            samples = samples or _samples_of(manifest, shard)
            embed = self._embed_texts if key.kind == "texts" else self._embed_images
            array = embed(samples, counts)
            counts["unusable"] += int(np.isnan(array[:, 0]).sum())
            storage.write(name, array_to_npy(array))
        return counts

    def _embed_texts(self, samples: list[Sample | BadSample], counts: dict[str, int]) -> np.ndarray:
        _, decoder, towers = self._loaded()

        def prepare(sample: Sample) -> Tensor:
            tokens, lengths = decoder.tokens_of(sample)
            counts["truncated_texts"] += lengths.truncated_tokens > 0
            return tokens

        def encode(tokens: list[Tensor]) -> Tensor:  # the mean of chunks, and of several readings
            chunks = [one.view(-1, one.shape[-1]) for one in tokens]
            encoded = towers.encode_text(torch.cat(chunks).to(self._device)).split([len(one) for one in chunks])
            return torch.stack([rows.mean(0) for rows in encoded])

        return _embed(
            samples, lambda sample: readings_of(sample, decoder.transcript), prepare, encode, towers.embed_dim
        )

    def _embed_images(self, samples: list[Sample | BadSample], counts: dict[str, int]) -> np.ndarray:
        clip, decoder, towers = self._loaded()

        def encode(images: list[np.ndarray]) -> Tensor:
            return towers.encode_image(normalised_images(images, clip.mean, clip.std, self._device))

        return _embed(samples, lambda sample: sample.image, decoder.image_of, encode, towers.embed_dim)

    def _loaded(self) -> tuple[LoadedClip, PairDecoder, FrozenTowers]:
        if self._parts is None:
            try:
                clip = load_clip(self.config.model.clip)
            except (ValueError, FileNotFoundError) as error:
                raise UserError(str(error)) from None
            self._parts = clip, build_decoder(self.config, clip), FrozenTowers(clip.model).to(self._device)
        return self._parts


def _samples_of(manifest: Manifest, shard: int) -> list[Sample | BadSample]:
    extent = Extent(shard, 0, int(manifest.num_samples[shard]))
    return [sample for _, sample in SplitReader(manifest).load(extent)]


@torch.inference_mode()
def _embed(
    samples: list[Sample | BadSample],
    content_of: Callable[[Sample], Any],
    prepare: Callable[[Sample], Any],
    encode: Callable[[list[Any]], Tensor],
    embed_dim: int,
) -> np.ndarray:
    """Embed each content once, in batches.

    Args:
        samples: of a shard.
        content_of: what is embedded of a sample, hashable; equal contents have one embedding. Raises `BadSample`.
        prepare: decodes the content of a sample; raises `BadSample`.
        encode: prepared contents -> (n, E).
        embed_dim: width E.

    Returns:
        (samples, E) float32; NaN where a sample cannot be used.
    """
    array = np.full((len(samples), embed_dim), np.nan, np.float32)
    rows_of: dict[Any, list[int]] = {}
    for row, sample in enumerate(samples):
        if isinstance(sample, Sample):
            with contextlib.suppress(BadSample):
                rows_of.setdefault(content_of(sample), []).append(row)
    for batch in batched(rows_of.values(), _BATCH):
        prepared = []
        for rows in batch:
            try:
                sample = samples[rows[0]]
                assert isinstance(sample, Sample)
                prepared.append((rows, prepare(sample)))
            except BadSample:
                continue
        if prepared:
            encoded = encode([one for _, one in prepared]).float().cpu().numpy()
            for (rows, _), vector in zip(prepared, encoded, strict=True):
                array[rows] = vector
    return array


def batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of at most `size` items, as `itertools.batched` of Python 3.12 does."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
