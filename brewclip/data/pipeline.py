"""A split as a `webdataset` pipeline, for training other models on it."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import SplitReader, extents_between
from brewclip.data.schema import BadSample, Sample


def as_webdataset(
    url: str,
    *,
    shuffle_shards: int = 0,
    seed: int | None = None,
    handler: Callable[[Exception], bool] | None = None,
    cache_directory: str = "",
) -> Any:
    """Return the samples of a split as a `webdataset` pipeline: `as_webdataset(url).shuffle(1000).decode("pil")`.

    A sample is a dictionary with `__key__`, `__url__`, and the bytes of its members by extension: `jpg`, `flac` (or
    `npy` after extraction) and `json`; of an adopted tar, its own extensions for `jpg` and `flac`, such as `png` and
    `wav`. Bytes are read through this package's storage, with its settings of S3, and compared with the manifest.

    Shards are divided among the nodes of torch.distributed and the workers of a DataLoader; a worker without a shard
    has no sample.

    Args:
        url: folder of the split, s3://bucket/corpus/split or file:///folder.
        shuffle_shards: size of the buffer in which shards are reshuffled in each epoch; 0 keeps their order.
        seed: of that shuffle, to repeat a run (a DataLoader then needs `persistent_workers=True`, as its new workers
            would begin with the first epoch again); None shuffles differently each time.
        handler: called with a `BadSample` for each that cannot be used, as in `webdataset`: such as
            `webdataset.warn_and_continue`; None raises it.
        cache_directory: folder where whole shards are cached after their first use; empty caches none.

    Raises:
        ManifestError: if there is no whole split.
    """
    import webdataset
    from webdataset.compat import FluidWrapper

    manifest = open_manifest(url)
    shards = [{"url": manifest.url_of(shard), "shard": shard} for shard in range(len(manifest.num_samples))]
    pipeline = FluidWrapper(shards)
    pipeline.append(webdataset.split_by_node)
    pipeline.append(webdataset.split_by_worker)
    if shuffle_shards:
        if seed is None:
            pipeline.append(webdataset.shuffle(shuffle_shards))
        else:
            pipeline.append(webdataset.detshuffle(shuffle_shards, seed=seed))
    pipeline.append(_ReadShards(url, handler or webdataset.reraise_exception, cache_directory))
    return pipeline


class _ReadShards:
    """Stage from shards to samples; it is pickled to workers, so it opens the manifest where it runs."""

    def __init__(self, url: str, handler: Callable[[Exception], bool], cache_directory: str) -> None:
        self.url, self.handler, self.cache_directory = url, handler, cache_directory

    def __call__(self, shards: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        reader = SplitReader(open_manifest(self.url), self.cache_directory)
        manifest = reader.manifest
        for one in shards:
            first = int(manifest.first_sample[one["shard"]])
            for extent in extents_between(manifest, first, first + int(manifest.num_samples[one["shard"]])):
                for number, sample in reader.load(extent):
                    if isinstance(sample, Sample):
                        yield {"__key__": sample.key, "__url__": one["url"]} | _members(
                            manifest, extent.shard, number, sample
                        )
                    elif not self.handler(_placed(sample, one["url"], number)):
                        return


def _members(manifest: Manifest, shard: int, number: int, sample: Sample) -> dict[str, bytes]:
    """Return extension -> bytes; the extensions of an adopted tar are its own."""
    if not manifest.is_adopted(shard):
        return sample.members()
    member = manifest.members_of(shard)[number]
    image = {} if member.image is None or sample.image is None else {member.image[2]: sample.image}
    metadata = json.dumps(dict(sample.metadata), ensure_ascii=False, sort_keys=True).encode()
    return image | {member.audio[2]: sample.audio or b"", "json": metadata}


def _placed(error: BadSample, url: str, number: int) -> BadSample:
    return BadSample(error.cause, f"{url}: sample {number}: {error.detail}")
