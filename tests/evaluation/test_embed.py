"""Embeddings of a split: equal for one worker and many, every image once, in stored order."""

import numpy as np
import pytest
import torch

from brewclip.config import Config, ModelConfig
from brewclip.data.batches import collate
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader
from brewclip.errors import UserError
from brewclip.evaluation.embed import embed_split, join_embeddings
from brewclip.factory import audio_dim_of, build_decoder, build_model
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.load import load_clip
from tests.data.splits import write_split
from tests.training.features import AUDIO_DIM, write_features

CONFIG = Config(model=ModelConfig(clip="scenes", ff_dim=64))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    url = tmp_path_factory.mktemp("features").as_uri()
    write_features(url, "test", 9, per_shard=4)
    return SplitReader(open_manifest(f"{url}/test"))


def embed(reader, rank=0, world_size=1):
    clip = load_clip("scenes")
    model = build_model(CONFIG, PromptedCLIP(clip.model), AUDIO_DIM)
    return embed_split(
        model,
        reader,
        build_decoder(CONFIG, clip),
        lambda pairs: collate(pairs, clip.mean, clip.std, torch.device("cpu")),
        Rejections(reader.manifest.url),
        rank=rank,
        world_size=world_size,
        batch_size=4,
    )


def test_many_workers_equal_one(reader):
    alone = embed(reader)
    joined = join_embeddings([embed(reader, rank, 4) for rank in range(4)])
    assert joined.keys == alone.keys
    assert joined.places == alone.places
    assert sorted(joined.image_ids) == sorted(alone.image_ids)
    np.testing.assert_allclose(joined.speech, alone.speech, atol=1e-5)
    order = [joined.image_ids.index(name) for name in alone.image_ids]
    np.testing.assert_allclose(joined.images[order], alone.images, atol=1e-5)


def test_near_is_what_nearly_all_recordings_reach_with_their_own_image(reader):
    found = embed(reader)
    own = found.images[[found.image_ids.index(name) for name in found.speech_image_ids]]
    cosines = torch.cosine_similarity(torch.from_numpy(found.speech), torch.from_numpy(own)).numpy()
    assert found.near_cosine() == pytest.approx(np.quantile(cosines, 0.05), abs=1e-6)
    assert cosines.min() < found.near_cosine() < np.median(cosines)


def test_every_recording_and_every_image_once(reader):
    found = embed(reader)
    assert len(found.keys) == len(set(found.keys)) == 18
    assert found.image_ids == [f"test{n}" for n in range(9)]
    shard, index = found.places[5]
    assert (shard, index) == (1, 1)
    result = found.rank()
    assert result.num_images == 9
    assert len(result.speech_to_image_rank) == 18


def test_a_split_without_features_is_refused_with_the_command_to_run(tmp_path):
    manifest = write_split((tmp_path / "recordings").as_uri(), [[3]])
    with pytest.raises(UserError, match=r"run jobs/extract\.py first"):
        audio_dim_of(manifest)
