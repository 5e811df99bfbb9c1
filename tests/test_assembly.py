"""What a run learns of its data before it builds a model."""

import pytest

from brewclip.assembly import audio_dim_of
from brewclip.config import UserError
from brewclip.data.manifest import open_manifest
from tests.training.features import AUDIO_DIM, write_features


@pytest.fixture
def shard(tmp_path):
    """The only shard of a small split, and the split's manifest."""
    write_features(tmp_path.as_uri(), "train", 4, rounds=1)
    return next((tmp_path / "train").glob("*.tar")), open_manifest(f"{tmp_path.as_uri()}/train")


def test_the_width_of_features_survives_a_damaged_first_sample(shard):
    path, manifest = shard
    data = bytearray(path.read_bytes())
    data[600] ^= 255  # within the first sample's picture
    path.write_bytes(data)
    assert audio_dim_of(manifest) == AUDIO_DIM


def test_a_shard_without_one_sound_sample_says_so(shard):
    path, manifest = shard
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"bytes of sample 3 were changed.*run jobs/extract"):
        audio_dim_of(manifest)
