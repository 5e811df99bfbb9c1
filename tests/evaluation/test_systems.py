"""Resolution of system names, splits that cannot be ranked, and equal ranks from one worker and from four."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brewclip.checkpoints.checkpoint import save_checkpoint
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import Config, DataConfig, flatten, preset
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections
from brewclip.data.schema import BadSample, Sample, array_to_npy
from brewclip.data.shards import finish_split, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.evaluation import shares
from brewclip.evaluation.embed import Embeddings
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.shares import check_rankable, embed_share, evaluate_system, rank_shares
from brewclip.evaluation.systems import SystemResult, describe_system, describe_systems
from tests.training.features import AUDIO_DIM, make_features, write_features


def config_of(folder: Path, transcript: str = "asr") -> Config:
    return replace(preset("scenes"), storage=folder.as_uri(), data=DataConfig(transcript=transcript))


def save_run(config: Config, name: str, *, named: bool = True, **model: object) -> None:
    """Write a run without weights, which is enough for a description."""
    trained = replace(config, model=replace(config.model, **model), run=replace(config.run, name=name if named else ""))
    facts = CheckpointFacts(step=3, config=flatten(trained), frozen_sha256={}, audio_dim=AUDIO_DIM)
    storage = open_storage(f"{config.storage}/runs/{name}")
    save_checkpoint(storage, Checkpoint(facts, {}, {}), best=True, keep=1)


def test_a_suffix_of_the_name_sets_the_transcript(tmp_path):
    config = config_of(tmp_path)
    save_run(config, "mine", variant="pipeline")
    asr, truth, plain = describe_systems(config, ["mine", "mine@ground_truth", "zero_shot@asr"])
    assert [one.name for one in (asr, truth, plain)] == ["mine", "mine@ground_truth", "zero_shot"]
    assert [one.config.data.transcript for one in (asr, truth, plain)] == ["asr", "ground_truth", "asr"]
    assert (asr.step, asr.trained_on, len(asr.weights_sha256)) == (3, "scenes", 64)
    on_asr = describe_system(config_of(tmp_path, "ground_truth"), "mine@asr")
    assert (on_asr.name, on_asr.config.data.transcript) == ("mine@asr", "asr")


def test_inputs_other_than_in_training_are_noted(tmp_path, capsys):
    config = config_of(tmp_path)
    save_run(replace(config, data=replace(config.data, long_text="chunks")), "mine")
    describe_system(config, "mine")
    assert capsys.readouterr().out == (
        "note: mine was trained with --data.long-text chunks and reads the split with truncate\n"
    )
    describe_system(replace(config, data=replace(config.data, long_text="chunks")), "mine")
    assert not capsys.readouterr().out


def test_two_seeds_of_a_variant_have_distinct_names(tmp_path):
    config = config_of(tmp_path)
    for name in ("scenes-pipeline-0", "scenes-pipeline-1"):
        save_run(config, name, named=False, variant="pipeline")
    names = [one.name for one in describe_systems(config, ["scenes-pipeline-0", "scenes-pipeline-1", "zero_shot"])]
    assert names == ["scenes-pipeline-0", "scenes-pipeline-1", "zero_shot"]
    assert describe_systems(config, ["scenes-pipeline-0"])[0].name == "scenes-pipeline-0"


def test_one_channel_of_a_full_model_is_a_system_of_its_own(tmp_path):
    config = config_of(tmp_path)
    save_run(config, "both")
    save_run(config, "one", variant="pipeline")
    systems = describe_systems(config, ["both", "both@acoustic", "both@text", "both@acoustic@ground_truth"])
    assert [(one.name, one.channel) for one in systems] == [
        ("both", ""), ("both@acoustic", "acoustic"), ("both@text", "text"), ("both@acoustic@ground_truth", "acoustic")
    ]  # fmt: skip
    with pytest.raises(UserError, match="one has no two channels, its variant is pipeline: leave out @text"):
        describe_system(config, "one@text")


def test_steps_of_a_run_and_runs_of_one_name_are_distinguished(tmp_path):
    here, there = config_of(tmp_path / "here"), config_of(tmp_path / "there")
    for config in (here, there):
        save_run(config, "mine")
    step = f"{here.storage}/runs/mine/checkpoints/step-00000003"
    assert [one.name for one in describe_systems(here, ["mine", step])] == ["mine", "mine/step-00000003"]
    other = f"{there.storage}/runs/mine"
    assert [one.name for one in describe_systems(here, ["mine", other])] == ["mine", other]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mime"], "no checkpoint at .*/runs/mime: .*; did you mean 'mine'"),
        (["zero_shoot"], "did you mean 'zero_shot'"),
        (["xyz"], "there are mine, zero_shot"),
        (["mine", "mine"], "--systems names mine twice"),
        ([], "--systems is empty"),
        (["file:///nowhere/runs/x"], "no checkpoint at file:///nowhere/runs/x"),
        (["other_clip"], "trained with --model.clip ViT-L-14/openai, here it is scenes"),
    ],
)
def test_unknown_names_are_refused(tmp_path, names, message):
    config = config_of(tmp_path)
    save_run(config, "mine")
    if "other_clip" in names:
        save_run(config, "other_clip", clip="ViT-L-14/openai")
    with pytest.raises(UserError, match=message) as caught:
        describe_systems(config, names)
    assert "\n" not in str(caught.value)


def embeddings(speech: np.ndarray, images: np.ndarray) -> Embeddings:
    names = [f"p{row % max(1, len(images))}" for row in range(len(speech))]
    keys = [f"{name}-{row}" for row, name in enumerate(names)]
    return Embeddings(keys, keys, names, [], speech, [f"p{row}" for row in range(len(images))], images)


def test_features_that_cannot_be_ranked_are_refused(tmp_path):
    write_features(tmp_path.as_uri(), "test", 4, rounds=1)
    manifest = open_manifest(f"{tmp_path.as_uri()}/test")
    none, good = Rejections(manifest.url), np.ones((4, 3), np.float32)
    check_rankable("a", manifest, embeddings(good, good), none)
    bad = good.copy()
    bad[2] = np.nan
    with pytest.raises(UserError, match=r"not finite for 1 of 4 recordings of .*such as 'p2-2'"):
        check_rankable("a", manifest, embeddings(bad, good), none)
    bad[2] = 0
    with pytest.raises(UserError, match=r"zero or not finite for 1 of 4 images .*'p2'"):
        check_rankable("a", manifest, embeddings(good, bad), none)
    with pytest.raises(UserError, match="has one image"):
        check_rankable("a", manifest, embeddings(good, good[:1]), none)
    many = Rejections(manifest.url, max_fraction=0.0)
    many.add("shard", 0, BadSample("text", "sample 'x' has no text"))
    with pytest.raises(UserError, match=r"1 of 4 samples .*max-bad-fraction 0.0"):
        check_rankable("a", manifest, embeddings(good, good), many)
    with pytest.raises(UserError, match=r"none of 4 recordings .*sample 'x' has no text"):
        check_rankable("a", manifest, embeddings(good[:0], good[:0]), many)


def changed(sample: Sample, **fields: object) -> Sample:
    return Sample(**{name: getattr(sample, name) for name in ("key", "metadata", "image", "features")} | fields)


def without_text(sample: Sample) -> Sample:
    return changed(sample, metadata={k: v for k, v in sample.metadata.items() if k != "text"})


def not_finite(sample: Sample) -> Sample:
    return changed(sample, features=array_to_npy(np.full((4, AUDIO_DIM), np.nan, np.float16)))


def without_image(sample: Sample) -> Sample:
    return changed(sample, image=None)


@pytest.mark.parametrize(
    ("change", "transcript", "images", "message"),
    [
        (
            without_text,
            "ground_truth",
            4,
            "none of 4 recordings of .* by zero_shot: text: sample 'test0-0' has no text",
        ),
        (not_finite, "asr", 4, "not finite"),
        (without_image, "asr", 4, "image: there is none"),
        (lambda sample: sample, "asr", 1, "has one image"),
    ],
    ids=["no text", "NaN", "no image", "one image"],
)
def test_a_split_that_cannot_be_ranked(tmp_path, change: Callable[[Sample], Sample], transcript, images, message):
    config = config_of(tmp_path, transcript)
    storage = open_storage(f"{config.features_url}/test")
    samples = (change(make_features("test", 0, number)) for number in range(images))
    records = [write_shard(storage, "test-00-000000.tar", 0, samples)]
    finish_split(storage, records, corpus="scenes", split="test", kind="features", num_images=images)
    system = describe_system(config, "zero_shot")
    with pytest.raises(UserError, match=message):
        rank_shares(system, open_manifest(storage.url), [embed_share(system, "test", 0, 1)])


def assert_same_ranks(one: SystemResult, other: SystemResult) -> None:
    for name in ("speech_to_image_rank", "image_to_speech_rank", "query_image_ids"):
        np.testing.assert_array_equal(getattr(one.result, name), getattr(other.result, name))
    assert one.embeddings.keys == other.embeddings.keys
    assert one.metrics == other.metrics


@pytest.mark.slow
def test_four_workers_give_the_ranks_of_one(tmp_path, capsys):
    config = config_of(tmp_path)
    write_features(config.features_url, "test", 13, per_shard=5, rounds=3, broken=[2])
    manifest, system = open_manifest(f"{config.features_url}/test"), describe_system(config, "zero_shot")
    alone = rank_shares(system, manifest, [embed_share(system, "test", 0, 1)])
    shared = rank_shares(system, manifest, [embed_share(system, "test", rank, 4) for rank in range(4)])
    assert_same_ranks(alone, shared)
    assert len(alone.embeddings.keys) == 38 and alone.bad_samples == shared.bad_samples == {"image": 1}
    assert "zero_shot: left out 1 of 39 recordings: image: cannot identify" in capsys.readouterr().out
    restored = Ranking.from_bytes(alone.ranking.to_bytes())
    assert restored.result.summary() == alone.metrics and restored.facts["bad_samples"] == {"image": 1}


@pytest.mark.services
def test_ray_gives_the_same_ranks(tmp_path, ray_head, monkeypatch):
    from brewclip.cluster import connect

    config = config_of(tmp_path)
    write_features(config.features_url, "test", 6, rounds=1)
    system, manifest = describe_system(config, "zero_shot"), open_manifest(f"{config.features_url}/test")
    monkeypatch.setattr(shares, "_RECORDINGS_PER_TASK", 2)  # three tasks
    connect()
    assert_same_ranks(
        evaluate_system(system, "test"), rank_shares(system, manifest, [embed_share(system, "test", 0, 1)])
    )
