"""Cached embeddings of a split: by place, of this split and these settings only, and nothing that others can break."""

import json

import numpy as np
import pytest

from brewclip.data import embeddings as module
from brewclip.data.embeddings import FACTS, EmbeddingFacts, EmbeddingKey, SplitEmbeddings, array_name, read_facts
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import BadSample, array_to_npy
from brewclip.data.storage import open_storage
from brewclip.errors import ManifestError
from tests.data.splits import write_split

DIM = 4


@pytest.fixture
def manifest(tmp_path):
    return write_split(tmp_path.as_uri(), [[5, 5, 2]])


def keys_of(manifest, **changes) -> tuple[EmbeddingKey, EmbeddingKey]:
    facts = {"split_sha256": manifest.sha256, "clip": "tiny", "clip_version": "", "settings": ("asr",)} | changes
    return EmbeddingKey("texts", **facts), EmbeddingKey("images", **facts)


def rows(manifest, shard: int, kind: str) -> np.ndarray:
    """Row i of shard s holds 100 s + i, negative for images."""
    count = int(manifest.num_samples[shard])
    values = (100.0 * shard + np.arange(count)) * (1 if kind == "texts" else -1)
    return np.repeat(values[:, None], DIM, axis=1).astype(np.float32)


def write(manifest, keys, *, identity: dict | None = None) -> None:
    for key in keys:
        storage = open_storage(f"{manifest.url}/{key.folder}")
        for shard in range(len(manifest.num_samples)):
            storage.write(array_name(manifest, shard), array_to_npy(rows(manifest, shard, key.kind)))
        facts = EmbeddingFacts(key.__dict__, DIM, identity or {"name": "tiny"})
        storage.write(FACTS, json.dumps(facts.__dict__).encode())


def test_a_reader_adds_them_by_place(manifest):
    keys = keys_of(manifest)
    write(manifest, keys)
    reader = SplitReader(manifest, embeddings=SplitEmbeddings(manifest, keys))
    for shard, count in enumerate(manifest.num_samples.tolist()):
        for index, sample in reader.load(Extent(shard, 0, count)):
            text, image = sample.embeddings
            assert (text == 100 * shard + index).all()
            assert (image == -(100 * shard + index)).all()


def test_few_shards_are_kept_in_memory(manifest, monkeypatch):
    write(manifest, keys_of(manifest))
    monkeypatch.setattr(module, "_CACHED_BYTES", 1)
    found = SplitEmbeddings(manifest, keys_of(manifest))
    for shard in (0, 1, 0, 2):
        assert found.at(shard, 1)[0][0] == 100 * shard + 1
        assert list(found._cached) == [shard]


@pytest.mark.parametrize(
    "changes", [{"split_sha256": "other"}, {"clip": "big"}, {"clip_version": "2"}, {"settings": ("ground_truth",)}]
)
def test_those_of_another_split_clip_or_setting_are_not_taken(manifest, changes):
    write(manifest, keys_of(manifest, **changes))
    with pytest.raises(ManifestError, match=r"holds no embeddings of tiny .* --model.adaptation adapter"):
        SplitEmbeddings(manifest, keys_of(manifest))


def test_texts_and_images_of_different_clips_are_refused(manifest):
    texts, images = keys_of(manifest)
    write(manifest, [texts])
    write(manifest, [images], identity={"name": "other"})
    with pytest.raises(ManifestError, match="embeddings of different tiny"):
        SplitEmbeddings(manifest, (texts, images))


def test_a_sample_without_embedding_is_a_bad_one(manifest):
    keys = keys_of(manifest)
    write(manifest, keys)
    spoiled = rows(manifest, 0, "images")
    spoiled[2] = np.nan
    open_storage(f"{manifest.url}/{keys[1].folder}").write(array_name(manifest, 0), array_to_npy(spoiled))
    samples = dict(SplitReader(manifest, embeddings=SplitEmbeddings(manifest, keys)).load(Extent(0, 0, 5)))
    assert [number for number, one in samples.items() if isinstance(one, BadSample)] == [2]
    assert samples[2].cause == "embedding"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04pickle",
        array_to_npy(np.zeros((5, DIM + 1), np.float32)),
        array_to_npy(np.zeros((4, DIM), np.float32)),
        array_to_npy(np.zeros((5, DIM), np.float64)),
    ],
)
def test_another_array_is_one_line(manifest, data):
    keys = keys_of(manifest)
    write(manifest, keys)
    open_storage(f"{manifest.url}/{keys[0].folder}").write(array_name(manifest, 0), data)
    with pytest.raises(ManifestError, match="embed") as caught:
        SplitEmbeddings(manifest, keys).at(0, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"key": 1, "embed_dim": 4, "clip_identity": {}}', b'{"a": 1}']
)
def test_facts_that_are_none_are_absent(tmp_path, data):
    storage = open_storage(tmp_path.as_uri())
    storage.write(FACTS, data)
    assert read_facts(storage) is None
