"""Embeddings that the extraction caches: those of CLIP, once for equal images and texts, resumed, and trained on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from brewclip.config import Config, preset
from brewclip.corpora import embedding_worker
from brewclip.corpora.embedding import embed_splits
from brewclip.corpora.embedding_worker import ShardEmbedder
from brewclip.data.batches import collate
from brewclip.data.embeddings import array_name, read_facts
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.schema import npy_to_array
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.factory import build_decoder, check_alternatives, embedding_keys, open_embeddings
from brewclip.pretrained.load import load_clip
from brewclip.training.worker import build_worker
from tests.corpora.cached import embed, manifest_of
from tests.training.features import write_features


@pytest.fixture
def config(tmp_path) -> Config:
    made = preset("scenes")
    return replace(
        made,
        storage=tmp_path.as_uri(),
        model=replace(made.model, adaptation="adapter", fusion="confidence", ff_dim=64),
        optim=replace(made.optim, total_steps=8, warmup_steps=2, peak_lr=1e-3),
        run=replace(
            made.run, global_batch_size=12, eval_every_steps=4, checkpoint_every_steps=4, log_every_steps=1,
            selection_metric="dev/mean_recall",
        ),
        cluster=replace(made.cluster, num_workers=1),
    )  # fmt: skip


def arrays(config: Config, shard: int) -> tuple[np.ndarray, np.ndarray]:
    manifest = manifest_of(config)
    texts, images = (
        npy_to_array(open_storage(f"{manifest.url}/{key.folder}").read(array_name(manifest, shard)))
        for key in embedding_keys(config, manifest)
    )
    return texts, images


def test_they_are_those_of_clip(config):
    write_features(config.features_url, "train", 7)
    embed(config)
    clip, manifest = load_clip("scenes"), manifest_of(config)
    decode = build_decoder(config, clip)
    pairs = [decode(sample) for _, sample in SplitReader(manifest).load(Extent(1, 0, 7))]
    batch = collate(pairs, clip.mean, clip.std, torch.device("cpu"))
    texts, images = arrays(config, 1)
    with torch.no_grad():
        np.testing.assert_allclose(texts, clip.model.encode_text(batch.tokens), atol=2e-6)
        np.testing.assert_allclose(images, clip.model.encode_image(batch.images), atol=2e-6)


def test_a_text_of_alternatives_is_the_mean_of_their_embeddings(config):
    """A certain text is the only one of its recording."""
    write_features(config.features_url, "train", 3, alternatives=1)
    config = replace(config, data=replace(config.data, transcript="asr_mean"))
    embed(config)
    clip, (texts, _) = load_clip("scenes"), arrays(config, 0)
    with torch.no_grad():
        readings = clip.model.encode_text(clip.tokenize([f"the scene of number {n}" for n in range(3)]))
        readings[1] = (readings[1] + clip.model.encode_text(clip.tokenize(["seen number 1"]))[0]) / 2
    np.testing.assert_allclose(texts, readings, atol=2e-6)


def test_training_reads_as_many_alternatives_as_were_extracted(config):
    write_features(config.features_url, "train", 3, alternatives=2)
    manifest, extraction = manifest_of(config), config.extraction
    check_alternatives(manifest, config)  # it reads none of them
    config = replace(config, data=replace(config.data, transcript="asr_mean"))
    with pytest.raises(
        UserError, match=r"with 2 alternatives, .* reads 3: give --extraction.alternatives 2, or extract"
    ):
        check_alternatives(manifest, config)
    check_alternatives(manifest, replace(config, extraction=replace(extraction, alternatives=2)))


def test_equal_contents_have_one_embedding_and_what_is_there_is_kept(config, monkeypatch):
    write_features(config.features_url, "train", 3, per_shard=3)
    computed = []
    original = embedding_worker.FrozenTowers.encode_image
    monkeypatch.setattr(
        embedding_worker.FrozenTowers, "encode_image", lambda self, x: computed.append(len(x)) or original(self, x)
    )
    embed(config)
    assert computed == [3, 3]
    embed(config)
    assert computed == [3, 3]
    # Another transcript needs other texts, and no other images.
    embed(replace(config, data=replace(config.data, transcript="ground_truth")))
    assert computed == [3, 3]


def test_a_broken_image_is_counted_and_its_recording_left_out(config):
    write_features(config.features_url, "train", 4, broken={2})
    manifest = manifest_of(config)
    keys = list(embedding_keys(config, manifest))
    assert ShardEmbedder(1, config).embed(manifest.url, keys, 0) == {"truncated_texts": 0, "unusable": 1}
    _, images = arrays(config, 0)
    assert np.isnan(images).all(axis=1).tolist() == [False, False, True, False]


@pytest.mark.services
def test_a_run_on_cached_embeddings_is_resumed(config, ray_head, capfd):
    """On Ray's workers; a run that was interrupted ends as one that was not, to the bit."""
    import ray

    write_features(config.features_url, "train", 30)
    write_features(config.features_url, "dev", 8)
    if not ray.is_initialized():
        ray.init(logging_level="error")
    assert embed_splits(config, ("train", "dev")) == {
        split: {"truncated_texts": 0, "unusable": 0} for split in ("train", "dev")
    }
    assert embed_splits(config, ("train", "dev")) == {}
    assert "embed scenes/train: already done with scenes" in capfd.readouterr().out

    straight = trained(replace(config, run=replace(config.run, name="straight")))
    broken_off = replace(config, run=replace(config.run, name="broken-off"))
    trained(broken_off, stop_after=5)
    found = trained(broken_off)
    assert straight.keys() == found.keys()
    for name, tensor in straight.items():
        assert torch.equal(found[name], tensor), name
    assert {"clip.residual.weight", "clip.strength", "fusion.weights"} <= straight.keys()
    assert not any(name.startswith(("prompts.", "clip.towers")) for name in straight)

    # The corpus is extracted again: its embeddings are those of another split.
    write_features(config.features_url, "train", 31)
    with pytest.raises(Exception, match="holds no embeddings of scenes"):
        open_embeddings(config, manifest_of(config))
    embed_splits(config, ("train",))
    folders = {name.rpartition("/")[0] for name in open_storage(manifest_of(config).url).list_names("embeddings/")}
    assert folders == {key.folder for key in embedding_keys(config, manifest_of(config))}, "stale ones are removed"
    facts = read_facts(open_storage(f"{manifest_of(config).url}/{sorted(folders)[0]}"))
    assert facts.embed_dim == 128


def trained(config: Config, stop_after: int = 0) -> dict[str, torch.Tensor]:
    """Train in this process, and return what the checkpoint would hold."""
    worker = build_worker(config)
    worker.preempted = lambda: False  # which asks Ray Train
    try:
        if stop_after:
            worker.stop_requested = lambda: worker.state.step >= stop_after
        worker.run()
        worker.saver.wait()
        return worker.parts.model.trained_state()
    finally:
        worker.close()
