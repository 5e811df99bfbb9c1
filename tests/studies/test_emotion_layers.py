"""Encoder layers of real emotional clips: from the recordings of a corpus, kept in storage, probed by speaker."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brewclip.audio import decode_audio
from brewclip.config import Config, DataConfig, ModelConfig
from brewclip.config.probe import ProbeConfig, check_probe, ignored_probe_settings
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.evaluation.systems import System
from brewclip.models.audio_chunks import FRAME_SAMPLES
from brewclip.paper.real_recordings import EMOTIONS, FOUR_CLASSES, STATEMENTS
from brewclip.studies.emotion import layers as emotion_layers
from brewclip.studies.emotion.clips import Clip, hold_out_each_speaker
from brewclip.studies.emotion.layers import LayerFeatures, load_layers
from brewclip.studies.emotion.linear import INVERSE_REGULARISATION, choose_regularisation
from brewclip.studies.emotion.probing import targets_of
from brewclip.studies.emotion.study import iter_results, probe_layers

pytestmark = pytest.mark.slow
ACTORS = ("01", "02", "03", "04")
PROBE = ProbeConfig()


def real_clips(shared: Path, actors: tuple[str, ...], emotions: tuple[str, ...]) -> list[tuple[Clip, bytes]]:
    """Return one sentence of each actor in each emotion, with its FLAC; the frames of the clips are made up."""
    found = []
    for actor in actors:
        for emotion in emotions:
            name = f"03-01-{emotion}-01-01-{actor}"
            flac = (shared / f"speech/ravdess/Actor_{actor}/{name}.flac").read_bytes()
            frames = np.zeros((-(-len(decode_audio(flac)) // FRAME_SAMPLES), 512), np.float16)
            label = FOUR_CLASSES[EMOTIONS[emotion[:2]]]
            found.append((Clip(name, actor, label, STATEMENTS["01"], frames), flac))
    return found


def write_recordings(config: Config, split: str, clips: list[tuple[Clip, bytes]]) -> None:
    storage = open_storage(f"{config.corpus_url}/{split}")
    metadata = {"split": split, "duration_seconds": 3.0}
    samples = [
        Sample(clip.key, metadata | {"image_id": clip.key, "caption_id": clip.key}, audio=flac) for clip, flac in clips
    ]
    record = write_shard(storage, shard_name(split, 0, 0), 0, iter(samples))
    assert record is not None
    finish_split(storage, [record], corpus="real", split=split, kind="recordings", num_images=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    storage = tmp_path_factory.mktemp("storage").as_uri()
    return Config(storage=storage, data=DataConfig(corpus="real"), model=ModelConfig(clip="scenes", ff_dim=64))


@pytest.fixture(scope="module")
def clips(config: Config, shared_directory: Path) -> list[Clip]:
    """Four actors, calm, sad and angry, spoken strongly; those of two actors in each split."""
    found = real_clips(shared_directory, ACTORS, ("02-02", "04-02", "05-02"))
    write_recordings(config, "train", found[:6])
    write_recordings(config, "test", found[6:])
    return [clip for clip, _ in found]


@pytest.fixture(scope="module")
def layers(config: Config, clips: list[Clip]) -> LayerFeatures:
    found = load_layers(config, ["train", "test"], PROBE)
    assert found is not None
    return found


def no_whisper(name: str) -> None:
    raise ValueError(f"Whisper {name} is loaded again")


def test_layers_are_computed_once(config, clips, layers, monkeypatch):
    monkeypatch.setattr(emotion_layers, "load_whisper", no_whisper)
    again = load_layers(config, ["train", "test"], replace(PROBE, layers=(3, 4), pooling="mean_std"))
    assert again is not None
    np.testing.assert_allclose(
        again.embed(clips).reshape(len(clips), 2, 2, 512)[:, :, 0],
        layers.embed(clips).reshape(len(clips), 6, 512)[:, 2:4],
        rtol=1e-3,
        atol=1e-3,
    )
    assert layers.name == "layers 1-6, mean of speech frames"
    assert again.name == "layers 3 4, mean and deviation of speech frames"
    with pytest.raises(UserError, match="Whisper base is loaded again"):
        load_layers(config, ["train"], replace(PROBE, frames="all"))
    with pytest.raises(UserError, match=r"--probe.layers 7 is not there: this Whisper's encoder has 6 layers"):
        load_layers(config, ["train"], replace(PROBE, layers=(7,)))


def test_emotions_of_new_speakers_are_heard(clips, layers):
    result = probe_layers(hold_out_each_speaker(clips), layers)
    assert (result.system, result.channel, result.num_test) == ("whisper", layers.name, 12)
    assert result.low > result.majority == pytest.approx(100 / 3), result.accuracy


def test_regularisation_of_real_clips_is_chosen_by_speaker(clips, layers):
    targets, speakers = targets_of(clips, ("angry", "neutral", "sad"))
    chosen = choose_regularisation(layers.embed(clips)[None], targets, speakers)
    assert INVERSE_REGULARISATION[0] < chosen < INVERSE_REGULARISATION[-1]
    noise = np.random.default_rng(0).normal(size=(1, len(clips), 512))
    assert choose_regularisation(noise, targets, speakers) < chosen


def test_a_system_that_hears_is_probed_in_four_ways(config, clips, layers):
    system = System("full", "", replace(config, model=replace(config.model, variant="brewclip")))
    results = list(iter_results(config, [system], hold_out_each_speaker(clips), layers, PROBE, ["probe"]))
    assert [(one.system, one.channel) for one in results] == [
        ("whisper", "mean frame"),
        ("whisper", layers.name),
        ("full", "acoustic"),
        ("full", "speech"),
        ("full", "pooled"),
        ("full", f"acoustic beside {layers.name}"),
    ]
    accuracy = {one.channel: one.accuracy for one in results}
    assert accuracy[f"acoustic beside {layers.name}"] > accuracy["acoustic"]  # whose frames are zero here


def test_what_cannot_be_read_is_one_line(config, clips, layers, capsys):
    assert load_layers(config, ["train", "missing"], PROBE) is None
    assert "encoder layers are left out, they need the recordings: " in capsys.readouterr().out
    stranger = replace(clips[0], key="stranger")
    with pytest.raises(UserError, match="clip 'stranger' has features and no recording any more"):
        layers.embed([stranger])
    storage = config.storage.removeprefix("file://")
    shutil.copytree(f"{storage}/real/train", f"{storage}/real/again")
    with pytest.raises(UserError, match=r"is in two splits of .*--probe.skip-layers"):
        load_layers(config, ["train", "again"], PROBE)


def test_settings_of_layers():
    with pytest.raises(ValueError, match=r"--probe\.layers 3 3 names a layer twice"):
        check_probe(ProbeConfig(layers=(3, 3)), "train")
    ignored = ProbeConfig(layers=(3,), frames="all", skip_layers=True)
    assert ignored_probe_settings(ignored, finetunes=False) == [
        "--probe.layers has no effect: --probe.skip-layers",
        "--probe.frames has no effect: --probe.skip-layers",
    ]
