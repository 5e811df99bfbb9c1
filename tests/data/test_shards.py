"""Shards and manifest: plain tars for others, exact offsets for us, whole or not there at all."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset

from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, Sample, pack_sample, unpack_sample
from brewclip.data.shards import finish_split, finished_shard, is_finished, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import ManifestError
from tests.data.splits import make_sample, write_split


def test_a_shard_is_a_plain_webdataset(tmp_path):
    write_split((tmp_path / "split").as_uri(), [[5]])
    path = tmp_path / "split" / "train-00-000000.tar"
    rows = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [row["__key__"] for row in rows] == [f"image{n}-0" for n in range(5)]
    assert rows[3]["jpg"] == make_sample(0, 3).image
    assert json.loads(rows[3]["json"])["caption_id"] == "image3-0"


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_split((tmp_path / name).as_uri(), [[5, 3], [4]])
    files = sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_file())
    assert {"manifest.json", "index.bin", "shards.parquet"} < set(files)
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_index_leads_to_every_sample(tmp_path):
    manifest = write_split((tmp_path / "split").as_uri(), [[5, 3], [4]])
    reader = SplitReader(manifest)
    for shard, count in enumerate([5, 3, 4]):
        for index in range(count):
            ((number, sample),) = reader.load(Extent(shard, index, 1))
            assert number == index
            round_number, first = (0, 0) if shard == 0 else (0, 5) if shard == 1 else (1, 0)
            assert sample == make_sample(round_number, first + index)


def test_a_split_without_a_manifest_does_not_exist(tmp_path):
    storage = open_storage((tmp_path / "split").as_uri())
    record = write_shard(storage, shard_name("train", 0, 0), 0, [make_sample(0, 0)])
    assert not is_finished(storage)
    with pytest.raises(ManifestError, match=r"no whole split at .*write or extract it first"):
        open_manifest(storage.url)
    finish_split(storage, [record], corpus="test", split="train", kind="recordings", num_images=1)
    assert is_finished(storage)
    assert not storage.list_names("parts/")


def test_an_interrupted_writer_finds_its_finished_shards(tmp_path):
    storage = open_storage((tmp_path / "split").as_uri())
    notes = {"rejected": ["one"]}
    record = write_shard(storage, "a.tar", 2, [make_sample(2, 0), make_sample(2, 1)], notes)
    again = finished_shard(storage, "a.tar")
    assert again == record
    assert again.notes == notes
    np.testing.assert_array_equal(again.index, record.index)
    assert finished_shard(storage, "b.tar") is None
    storage.write("a.tar", b"cut")
    assert finished_shard(storage, "a.tar") is None


def test_a_shard_that_fails_half_way_is_not_there(tmp_path):
    storage = open_storage((tmp_path / "split").as_uri())

    def samples():
        yield make_sample(0, 0)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_shard(storage, "a.tar", 0, samples())
    assert storage.list_names() == []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("with.dot", make_sample(0, 0).metadata), "must be a file name without dots"),
        (Sample("", make_sample(0, 0).metadata), "must be a file name"),
        (Sample("a", {"image_id": "a"}), "caption_id is None"),
    ],
)
def test_bad_keys_and_metadata_are_refused(tmp_path, sample, message):
    with pytest.raises(ValueError, match=message):
        write_shard(open_storage(tmp_path.as_uri()), "a.tar", 0, [sample])


def test_the_same_key_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="comes twice"):
        write_shard(open_storage(tmp_path.as_uri()), "a.tar", 0, [make_sample(0, 0)] * 2)


@pytest.mark.parametrize("key", ["plain", "unicode-\u00e9\u4e2d", "long-" + "x" * 150])
def test_samples_survive_packing(key):
    sample = Sample(key, make_sample(0, 0).metadata, image=b"\xff\xd8", audio=b"f" * 1000, features=None)
    data = pack_sample(sample)
    assert unpack_sample(data) == sample
    with tarfile.open(fileobj=io.BytesIO(data + b"\0" * 1024)) as tar:
        names = tar.getnames()
    assert names == [f"{key}.jpg", f"{key}.flac", f"{key}.json"]


@pytest.mark.parametrize("cut", [500, 512, 700, 1024, 1500])
def test_truncated_samples_are_noticed(cut):
    data = pack_sample(make_sample(0, 0, size_bytes=400))
    with pytest.raises(BadSample):
        unpack_sample(data[: len(data) - cut])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("manifest.json", b"{", "cannot be read"),
        ("manifest.json", b'{"schema_version": 99}', "schema version 99"),
        ("shards.parquet", b"other", "is not the one that manifest.json names"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, file, damage, message):
    write_split((tmp_path / "split").as_uri(), [[2]])
    (tmp_path / "split" / file).write_bytes(damage)
    with pytest.raises(ManifestError, match=message):
        open_manifest((tmp_path / "split").as_uri())


def test_a_stale_index_is_named(tmp_path):
    manifest = write_split((tmp_path / "split").as_uri(), [[2, 2]])
    index = tmp_path / "split" / "index.bin"
    index.write_bytes(index.read_bytes()[::-1])
    with pytest.raises(ManifestError, match=r"index\.bin does not hold the index of train-00-000000\.tar"):
        SplitReader(manifest).read(Extent(0, 0, 1))
