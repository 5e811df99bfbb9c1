"""Facts read from a split before the model is built, and the model built from a configuration."""

import pytest

from brewclip.config import preset
from brewclip.data.manifest import open_manifest
from brewclip.errors import UserError
from brewclip.factory import audio_dim_of, build_model
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.load import load_clip
from tests.training.features import AUDIO_DIM, write_features


@pytest.fixture
def shard(tmp_path):
    """The only shard of a small split, and the split's manifest."""
    write_features(tmp_path.as_uri(), "train", 4, rounds=1)
    return next((tmp_path / "train").glob("*.tar")), open_manifest(f"{tmp_path.as_uri()}/train")


def test_the_width_of_features_survives_a_damaged_first_sample(shard):
    path, manifest = shard
    data = bytearray(path.read_bytes())
    data[600] ^= 255  # within the first sample's image
    path.write_bytes(data)
    assert audio_dim_of(manifest) == AUDIO_DIM


def test_a_shard_without_a_readable_sample_is_refused(shard):
    path, manifest = shard
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"bytes of sample 3 were changed.*run jobs/extract"):
        audio_dim_of(manifest)


def test_the_release_starts_cls_and_counts_its_loss_as_the_authors_do():
    """CLS from N(0, 1) and the mean of both directions; the paper's presets: 0.02 and their sum."""
    clip = PromptedCLIP(load_clip("scenes").model)
    spread = {}
    for name in ("flickr8k", "flickr8k_release"):
        config = preset(name)
        model = build_model(config, clip, AUDIO_DIM)
        assert model.acoustic is not None
        spread[config.model.cls_std] = model.acoustic.cls.std().item()
        assert (config.loss.reduction, config.optim.grad_clip_norm) == ("mean" if "release" in name else "sum", 4.0)
    assert spread == {0.02: pytest.approx(0.02, rel=0.15), 1.0: pytest.approx(1.0, rel=0.15)}
