"""A split of ours for `webdataset`: the same bytes, its own shuffle and decode, workers of a DataLoader, damage."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from brewclip.data import as_webdataset
from brewclip.data.manifest import open_manifest
from brewclip.data.schema import BadSample, Sample, array_to_npy
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from tests.data.splits import write_split
from tests.datasets.miniatures import image


def write_features(url: str) -> None:
    """Write a split as it is after extraction."""
    metadata = {"image_id": "p", "caption_id": "p-0", "split": "train", "duration_seconds": 1.0, "transcript": "a dog"}
    features = array_to_npy(np.arange(6, dtype=np.float16).reshape(2, 3))
    record = write_shard(
        open_storage(url), shard_name("train", 0, 0), 0, [Sample("p-0", metadata, image(), None, features)]
    )
    finish_split(open_storage(url), [record], corpus="test", split="train", kind="features", num_images=1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    write_split((tmp_path / "split").as_uri(), [[5, 3], [4]])
    return (tmp_path / "split").as_uri()


def test_it_yields_what_webdataset_reads_from_the_same_shards(url: str) -> None:
    manifest = open_manifest(url)
    paths = [manifest.url_of(shard).removeprefix("file://") for shard in range(3)]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
    ours = list(as_webdataset(url))
    assert len(ours) == 12
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("__url__") == f"file://{other.pop('__url__')}"
        assert one == {name: value for name, value in other.items() if name != "__local_path__"}


def test_features_decode_as_users_do_it(tmp_path: Path) -> None:
    write_features((tmp_path / "split").as_uri())
    pipeline = as_webdataset((tmp_path / "split").as_uri()).decode("rgb8").to_tuple("jpg", "npy", "json")
    ((image, features, metadata),) = pipeline
    assert image.shape == (30, 40, 3)
    np.testing.assert_array_equal(features, np.arange(6).reshape(2, 3))
    assert metadata["transcript"] == "a dog"


def test_workers_of_a_loader_share_the_shards(url: str) -> None:
    pipeline = as_webdataset(url, shuffle_shards=10).shuffle(5)
    keys = [sample["__key__"] for sample in DataLoader(pipeline, batch_size=None, num_workers=2)]
    assert sorted(keys) == sorted(sample["__key__"] for sample in as_webdataset(url))


def test_shards_are_reshuffled_in_each_epoch_and_by_a_seed(url: str) -> None:
    plain, pipeline = [s["__key__"] for s in as_webdataset(url)], as_webdataset(url, shuffle_shards=10, seed=1)
    epochs = [[sample["__key__"] for sample in pipeline] for _ in range(6)]
    assert all(sorted(keys) == sorted(plain) for keys in epochs)
    assert len({tuple(keys) for keys in epochs}) > 1
    again = as_webdataset(url, shuffle_shards=10, seed=1)
    assert [[sample["__key__"] for sample in again] for _ in range(6)] == epochs


def test_a_changed_sample_is_raised_or_handled(url: str) -> None:
    path = Path(url.removeprefix("file://")) / "train-00-000001.tar"
    data = bytearray(path.read_bytes())
    data[512] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BadSample, match=r"train-00-000001\.tar: sample 0: bytes of sample 0 were changed"):
        list(as_webdataset(url))
    assert len(list(as_webdataset(url, handler=webdataset.ignore_and_continue))) == 11
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(as_webdataset(url, handler=webdataset.warn_and_continue))) == 11
    assert "train-00-000001.tar" in str(caught[0].message)


def test_importing_the_room_does_not_load_webdataset_or_torch() -> None:
    code = "import sys, brewclip.data; print(*{'webdataset', 'torch', 'boto3'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
