"""Other ways to read a split of shards: WebDataset, torchdata's StatefulDataLoader over it, and Ray Data.

Each yields batches of samples, decoded by the function that it is given.
"""

import functools
import io
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from brewclip.data.manifest import Manifest

_BUFFER_BYTES = 2**20
Decode = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Makes a sample of the bytes of its members, by suffix."""


def shard_urls(manifest: Manifest) -> list[str]:
    """Return the URLs of the shards, in their order."""
    return [f"{manifest.url}/{manifest.name_of(shard)}" for shard in range(len(manifest.num_samples))]


def open_webdataset(manifest: Manifest) -> Any:
    """Return WebDataset over the shards in random order, without a buffer of samples, which would cost it time."""
    import webdataset

    webdataset.gopen_schemes["s3"] = _open_s3
    urls = shard_urls(manifest)
    return webdataset.WebDataset(urls, shardshuffle=len(urls))


def _open_s3(url: str, mode: str = "rb", bufsize: int = _BUFFER_BYTES, **options: Any) -> Any:
    """Open an object for WebDataset, which has no opener for s3://."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    client = _s3_client(os.getpid(), os.environ.get("AWS_ENDPOINT_URL", ""))
    return io.BufferedReader(client.get_object(Bucket=bucket, Key=key)["Body"], _BUFFER_BYTES)


@functools.cache
def _s3_client(process_id: int, endpoint: str) -> Any:
    """Return one client per process, as it must not be shared across a fork, and per endpoint."""
    import boto3

    return boto3.session.Session().client("s3")


def iter_webdataset(manifest: Manifest, decode: Decode, batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield an epoch of WebDataset, read and decoded in this thread."""
    samples = iter(open_webdataset(manifest).map(decode))
    while batch := list(itertools.islice(samples, batch_size)):
        yield batch


def iter_stateful_loader(manifest: Manifest, decode: Decode, batch_size: int, num_workers: int = 0) -> Iterator[Any]:
    """Yield an epoch of torchdata's StatefulDataLoader over WebDataset: lists of samples; tensors, if by processes.

    Args:
        manifest: the split.
        decode: decoder of a sample.
        batch_size: samples of a batch.
        num_workers: processes that read and decode; 0 uses this one.
    """
    from torchdata.stateful_dataloader import StatefulDataLoader

    samples = open_webdataset(manifest).map(decode)
    collate = _stack if num_workers else list
    with warnings.catch_warnings():  # torchdata 0.11 calls what torch 2.15 calls deprecated
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        loader = StatefulDataLoader(samples, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    yield from loader


def _stack(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return tensors of a batch by suffix, which go from process to process through shared memory."""
    stacked = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in ("jpg", "npy")}
    return stacked | {"json": [sample["json"] for sample in samples]}


def iter_ray_data(manifest: Manifest, decode: Decode, batch_size: int, num_tasks: int = 1) -> Iterator[dict[str, Any]]:
    """Yield an epoch of Ray Data's `read_webdataset`, as arrays of a batch by suffix; connect to Ray before.

    Args:
        manifest: the split, on S3.
        decode: decoder of a sample; runs in the tasks that read.
        batch_size: samples of a batch.
        num_tasks: tasks that read at the same time, each in a process.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns that progress is not printed
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = [url.removeprefix("s3://") for url in shard_urls(manifest)]
    dataset = ray.data.read_webdataset(
        paths, filesystem=_arrow_filesystem(), decoder=decode, shuffle="files", concurrency=num_tasks
    )
    yield from dataset.iter_batches(batch_size=batch_size, batch_format="numpy")


def _arrow_filesystem() -> Any:
    """Return pyarrow's view of the S3 server of the environment; it does not read AWS_ENDPOINT_URL by itself."""
    from pyarrow.fs import S3FileSystem

    scheme, _, address = os.environ["AWS_ENDPOINT_URL"].partition("://")
    return S3FileSystem(endpoint_override=address, scheme=scheme, region=os.environ["AWS_REGION"])
