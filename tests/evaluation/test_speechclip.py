"""The baseline from training to search: trained, interrupted, evaluated, loaded, and refused where it must be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import brewclip
from brewclip.audio import decode_audio
from brewclip.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from brewclip.config import Config, preset
from brewclip.data.manifest import open_manifest
from brewclip.data.order import Extent
from brewclip.data.reader import SplitReader
from brewclip.data.storage import open_storage
from brewclip.errors import CheckpointError, UserError
from brewclip.evaluation.identity import identify
from brewclip.evaluation.report import build_report
from brewclip.evaluation.shares import embed_share, rank_shares
from brewclip.evaluation.systems import check_reads_features, describe_systems, open_systems
from brewclip.studies.truncation import untruncated_inputs
from brewclip.training.worker import build_worker
from tests.training.features import write_features
from tests.training.recordings import save_tiny_whisper, write_recordings

pytestmark = pytest.mark.slow
NAME = "scenes-speechclip-0"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Settings of a short run, with its corpus, and features for the systems that read them."""
    folder = tmp_path_factory.mktemp("speechclip")
    start = preset("scenes_speechclip")
    config = replace(
        start,
        storage=folder.as_uri(),
        data=replace(start.data, crop_samples=4000),
        model=replace(start.model, ff_dim=64, speech_encoder=save_tiny_whisper(folder)),
        optim=replace(start.optim, total_steps=6, warmup_steps=1),
        run=replace(start.run, global_batch_size=8, log_every_steps=100, eval_every_steps=3, checkpoint_every_steps=2),
        tracking=replace(start.tracking, uri=""),
    )
    for split, num_images in (("train", 12), ("dev", 4), ("test", 6)):
        write_recordings(config.corpus_url, split, num_images, broken=1 if split == "test" else -1)
    write_features(config.features_url, "test", 6)
    return config


@pytest.fixture(scope="module")
def trained(config) -> Config:
    """The settings, when the run is at its end."""
    worker = build_worker(config)
    state = worker.run()
    worker.close()
    assert (state.step, state.problem) == (6, "") and "dev/speech_to_image/R1" in state.best
    return config


def test_an_interrupted_run_ends_with_the_same_weights(trained):
    """Asked to stop in the middle of an epoch, and resumed from its checkpoint by a new worker: equal to the bit."""
    other = replace(trained, run=replace(trained.run, name="interrupted"))
    first = build_worker(other)
    first.stop_requested = lambda: first.state.step >= 3  # met after the step that was about to start
    first.run()
    first.close()
    second = build_worker(other)
    assert second.state.step == 4
    second.run()
    second.close()
    straight, resumed = (load_checkpoint(open_storage(one.run_url)) for one in (trained, other))
    assert resumed.facts.step == straight.facts.step == 6
    for name, tensor in straight.model.items():
        assert torch.equal(resumed.model[name], tensor), name
    assert resumed.facts.metrics == straight.facts.metrics


def test_a_checkpoint_holds_no_frozen_weights_and_names_them(trained):
    checkpoint = load_checkpoint(open_storage(trained.run_url))
    assert set(checkpoint.facts.frozen_sha256) == {"scenes", trained.model.speech_encoder}
    assert {name.split(".")[1] for name in checkpoint.model if "." in name} == {
        "cls", "layer_weights", "layers", "norm", "output"
    }  # fmt: skip
    assert checkpoint.facts.audio_dim == 16


def test_it_is_evaluated_on_the_corpus_and_compared_with_what_reads_features(trained):
    config = replace(trained, model=replace(trained.model, variant="brewclip", cls_std=0.02))
    baseline, zero = systems = open_systems(config, [NAME, "zero_shot"], "test")
    assert (baseline.config.splits_url, zero.config.splits_url) == (config.corpus_url, config.features_url)
    results = [
        rank_shares(
            one, open_manifest(f"{one.config.splits_url}/test"), [embed_share(one, "test", r, 2) for r in (0, 1)]
        )
        for one in systems
    ]
    assert [len(one.embeddings.keys) for one in results] == [11, 12]
    assert results[0].bad_samples == {"not_audio": 1}
    for order in (results, results[::-1]):
        assert "data:image/jpeg;base64" in build_report(config, "test", order, 3)
    identity = identify(config, systems, ["test"])
    assert len(identity["other_splits"]) == 1 and "other_splits" not in identify(config, [zero], ["test"])
    assert list(untruncated_inputs(baseline.config)) == ["image", "speech"]
    with pytest.raises(UserError, match=f"emotion looks at Whisper's features, which {NAME} does not read"):
        check_reads_features(systems, "emotion")


def test_loading_it_gives_the_embeddings_of_the_evaluation(trained, tmp_path):
    """Whole recordings and images, by `brewclip.load`; an index of plain CLIP serves it."""
    embedder = brewclip.load(trained.run_url)
    (system,) = describe_systems(trained, [NAME])
    share = embed_share(system, "dev", 0, 1).embeddings
    samples = [one for _, one in SplitReader(open_manifest(f"{trained.corpus_url}/dev")).load(Extent(0, 0, 4))]
    waveforms = [decode_audio(sample.audio) for sample in samples]
    expected = share.speech[:4] / np.linalg.norm(share.speech[:4], axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.embed_speech(waveforms), expected, atol=1e-5)
    (heard,) = embedder.listen(waveforms[:1])
    assert (heard.transcript, heard.text) == ("", None) and np.array_equal(heard.sound, heard.fused)
    assert (embedder.reads_text, embedder.hears_sound) == (False, True)
    for number, sample in enumerate(samples):
        (tmp_path / f"{number}.jpg").write_bytes(sample.image)
    index, _ = embedder.build_index([tmp_path], tmp_path / "index")
    assert embedder.identity == brewclip.load("zero_shot", clip="scenes").identity
    matches = embedder.search(index, waveforms, k=4)
    ranks = share.images[:4] / np.linalg.norm(share.images[:4], axis=1, keepdims=True) @ expected.T
    assert [Path(one[0].name).stem for one in matches] == [str(best) for best in ranks.argmax(axis=0)]
    with pytest.raises(ValueError, match="reads no text"):
        embedder.embed_text(["a red apple"])


def test_another_encoder_than_that_of_its_training_is_refused(trained, tmp_path):
    storage = open_storage(trained.run_url)
    checkpoint = load_checkpoint(storage)
    hashes = checkpoint.facts.frozen_sha256 | {trained.model.speech_encoder: "0" * 64}
    changed = replace(checkpoint, facts=replace(checkpoint.facts, frozen_sha256=hashes))
    save_checkpoint(open_storage(f"{tmp_path.as_uri()}/runs/changed"), changed, best=True, keep=1)
    with pytest.raises(CheckpointError, match=r"trained on whisper-\S+ with sha256 0000"):
        brewclip.load(f"{tmp_path.as_uri()}/runs/changed")
