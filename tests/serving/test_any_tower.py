"""Each family of towers from cached embeddings to search: embed, train an adapter, restore, index, speak.

Random weights, so what is compared is that all parts see the same embeddings, not whether the right image is found.
"""

import functools
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import brewclip
from brewclip.audio import decode_audio
from brewclip.config import preset
from brewclip.corpora import embedding_worker
from brewclip.data.embeddings import SplitEmbeddings
from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.errors import UserError
from brewclip.factory import embedding_keys
from brewclip.pretrained.load import load_clip
from brewclip.pretrained.whisper import load_whisper
from brewclip.serving import embedder, speech_readers
from brewclip.training.worker import build_worker
from tests.corpora.cached import write_embeddings
from tests.pretrained.test_towers import FAMILIES, FROM_A_HUB
from tests.training import features
from tests.training.features import write_features

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Load each CLIP once in a test, and Whisper once in all: the weights are the same in every process."""
    clips = functools.cache(load_clip)
    monkeypatch.setattr(embedding_worker, "load_clip", clips)
    monkeypatch.setattr(embedder, "load_clip", clips)
    monkeypatch.setattr(speech_readers, "load_whisper", WHISPER)


WHISPER = functools.cache(load_whisper)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in FROM_A_HUB])
def test_from_embeddings_to_search(family, tmp_path, shared_directory, monkeypatch):
    monkeypatch.setattr(features, "AUDIO_DIM", 512)  # of Whisper base
    made = preset("scenes")
    config = replace(
        made,
        storage=tmp_path.as_uri(),
        model=replace(
            made.model, clip=f"{FAMILIES[family]}/random", adaptation="adapter", fusion="confidence", ff_dim=16
        ),
        optim=replace(made.optim, total_steps=2, warmup_steps=1),
        run=replace(made.run, name="run", global_batch_size=4, eval_every_steps=2, checkpoint_every_steps=2),
    )
    for split in ("train", "dev"):
        write_features(config.features_url, split, 4, rounds=1)
        write_embeddings(config, split)
    worker = build_worker(config)
    worker.preempted = lambda: False  # which asks Ray Train
    worker.run()
    worker.close()

    model = brewclip.load(config.run_url)
    assert -1 < model.near_cosine < 1
    manifest = open_manifest(f"{config.features_url}/dev")
    samples = [sample for _, sample in SplitReader(manifest).load(Extent(0, 0, 4))]
    stored = SplitEmbeddings(manifest, embedding_keys(config, manifest))
    images = np.stack([stored.at(0, row)[1] for row in range(4)])
    found = model.embed_images([Image.open(io.BytesIO(sample.image)) for sample in samples])
    assert (found * images / np.linalg.norm(images, axis=1, keepdims=True)).sum(1) == pytest.approx(1, abs=1e-4)

    for row, sample in enumerate(samples):
        (tmp_path / f"{row}.jpg").write_bytes(sample.image)
    index, report = model.build_index([tmp_path / f"{row}.jpg" for row in range(4)], tmp_path / "index")
    assert report.unusable == []
    (matches,) = model.search(index, [decode_audio((shared_directory / "speech/jfk.flac").read_bytes())], k=2)
    assert len(matches) == 2
    plain = brewclip.load("zero_shot", clip=config.model.clip)
    assert len(plain.search(index, found, k=2)) == 4, (
        "images are not adapted: any adapter takes the index of CLIP's own"
    )
    other = brewclip.load("zero_shot", clip="scenes")
    with pytest.raises(UserError, match="the index was made by"):
        other.search(index, np.zeros((1, 4), np.float32))


def test_zero_shot_takes_any_tower():
    assert brewclip.load("zero_shot", clip="convnext_tiny/random").embed_dim == 1024
