"""Emotion probes: channels, held-out speakers, and accuracy from the text alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brewclip.config import Config, DataConfig, ModelConfig
from brewclip.config.probe import ProbeConfig, check_probe, ignored_probe_settings
from brewclip.errors import UserError
from brewclip.evaluation.systems import System, load_system
from brewclip.models.emotion import EmotionClassifier
from brewclip.studies.emotion import linear as linear_probes
from brewclip.studies.emotion.clips import Clip, augment, divide_by_speaker, load_folds
from brewclip.studies.emotion.linear import INVERSE_REGULARISATION, choose_regularisation, fit_probe
from brewclip.studies.emotion.probing import Learner, targets_of
from brewclip.studies.emotion.results import confusion_rows, draw_accuracy, emotion_page, emotion_rows
from brewclip.studies.emotion.study import probe_system, probe_whisper
from tests.studies.clips import AUDIO_DIM, write_clips

TRAIN = ["ann", "bob", "cid", "dan"]
PROBE = ProbeConfig(max_epochs=2, lrs=(1e-3,))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    storage = tmp_path_factory.mktemp("storage").as_uri()
    found = Config(storage=storage, data=DataConfig(corpus="clips"), model=ModelConfig(clip="scenes", ff_dim=64))
    write_clips(found.features_url, "train", TRAIN)
    write_clips(found.features_url, "test", ["eve", "fay"])
    write_clips(found.features_url, "same", ["cid", "dan", "eve", "fay"], heard=False)
    write_clips(found.features_url, "unlabelled", ["gus"], labelled=False)
    return found


@pytest.fixture(scope="module")
def clips(config):
    (found,) = load_folds(config, PROBE)
    return found


def system_of(config: Config, variant: str) -> System:
    """Return a system with the weights that training starts from."""
    return System(variant, "", replace(config, model=replace(config.model, variant=variant)))


def test_sound_separates_emotions_of_new_speakers(config, clips):
    for result in (probe_whisper([clips], PROBE), probe_system(config, system_of(config, "acoustic"), folds=[clips])):
        assert result.accuracy == result.high == 100.0
        assert result.majority == 50.0  # neutral comes twice as often
        assert result.test_speakers == ("eve", "fay")
        assert np.array(result.confusion).tolist() == np.diag([16, 16, 32]).tolist()


@pytest.mark.parametrize("variant", ["zero_shot", "pipeline"])
def test_the_sentence_alone_gives_the_majority_baseline(config, variant):
    result = probe_system(config, system_of(config, variant))
    assert result.channel == "text"
    assert result.accuracy == result.majority == 50.0
    assert [row[2] for row in result.confusion] == [16, 16, 32]  # all are called neutral


def test_a_transcript_that_names_the_emotion_is_detected(config):
    probe = replace(PROBE, transcript="asr")
    assert probe_system(config, system_of(config, "zero_shot"), probe=probe).accuracy > 90


def test_channels_of_the_full_model(config, clips):
    full = system_of(config, "brewclip")
    assert probe_system(config, full, folds=[clips]).channel == "acoustic"
    assert probe_system(config, full, folds=[clips], channel="speech").accuracy > 90
    with pytest.raises(UserError, match="pipeline: a pipeline model has no channel 'acoustic'"):
        probe_system(config, system_of(config, "pipeline"), folds=[clips], channel="acoustic")


def test_finetuning_starts_as_the_probe_and_choosing_epochs_restores_the_weights(config, clips):
    model, clip = load_system(system_of(config, "acoustic"), AUDIO_DIM)
    learner = Learner(EmotionClassifier(model, "acoustic", 3), clip.tokenize, clips.labels, PROBE)
    linear = fit_probe(learner.embed_views(clips.train), targets_of(clips.train, clips.labels)[0], 1e-4)
    learner.finetune(clips.train, linear, 1e-3, 0)
    assert (learner.predict(clips.test) == linear.predict(learner.embed(clips.test))).all()
    before = learner.embed(clips.test)
    lr, num_epochs = learner.choose_schedule(clips.train, 1e-4)
    assert lr == 1e-3 and 0 <= num_epochs <= PROBE.max_epochs
    np.testing.assert_array_equal(learner.embed(clips.test), before)
    learner.finetune(clips.train, linear, 1e-3, 1)
    assert not np.array_equal(learner.embed(clips.test), before)


def test_finetuning_is_tested_on_the_same_speakers(config, clips):
    result = probe_system(config, system_of(config, "acoustic"), folds=[clips], method="finetune", probe=PROBE)
    assert (result.method, result.accuracy) == ("finetune", 100.0)
    with pytest.raises(UserError, match="zero_shot has neither prompts nor an acoustic layer to finetune"):
        probe_system(config, system_of(config, "zero_shot"), folds=[clips], method="finetune")


def test_two_emotions_have_a_head_of_two(config, clips):
    two = replace(
        clips,
        train=[clip for clip in clips.train if clip.emotion != "happy"],
        test=[clip for clip in clips.test if clip.emotion != "happy"],
        labels=("angry", "neutral"),
    )
    model, clip = load_system(system_of(config, "acoustic"), AUDIO_DIM)
    learner = Learner(EmotionClassifier(model, "acoustic", 2), clip.tokenize, two.labels, PROBE)
    linear = fit_probe(learner.embed_views(two.train), targets_of(two.train, two.labels)[0], 0.1)
    learner.finetune(two.train, linear, 1e-3, 0)
    assert (learner.predict(two.test) == linear.predict(learner.embed(two.test))).all()


def test_augmentation_of_the_probe(config, clips):
    probe = replace(PROBE, augmented_copies=2)
    assert probe_system(config, system_of(config, "acoustic"), folds=[clips], probe=probe).accuracy == 100.0


def clip_of(speaker: str, emotion: str = "happy") -> Clip:
    return Clip("key", speaker, emotion, "text", np.zeros((2, 3), np.float16))


def test_speakers_of_both_splits_are_held_out_from_both(config):
    (found,) = load_folds(config, replace(PROBE, test_split="same"))
    assert {clip.speaker for clip in found.train} == set(TRAIN)
    assert {clip.speaker for clip in found.test} == {"eve", "fay"}
    assert len(found.train) == 4 * 32 + 2 * 32
    assert "eve, fay held out" in found.how


@pytest.mark.slow
def test_each_speaker_is_tested_once_by_a_probe_trained_on_the_others(config):
    probe = replace(PROBE, folds="speakers")
    folds = load_folds(config, probe)
    speakers = sorted([*TRAIN, "eve", "fay"])
    assert [{clip.speaker for clip in fold.test} for fold in folds] == [{name} for name in speakers]
    for fold, speaker in zip(folds, speakers, strict=True):
        assert {clip.speaker for clip in fold.train} == set(speakers) - {speaker}
    result = probe_system(config, system_of(config, "acoustic"), probe=probe, folds=folds)
    assert result.accuracy == 100.0 and result.num_test == 6 * 32 == len(result.hits)
    assert result.by_speaker == dict.fromkeys(speakers, 100.0)
    assert len(result.inverse_regularisation) == 6
    text = emotion_page("clips", [result]).terminal()
    assert "each of 6 speakers tested on once" in text and "eve" in text
    few = replace(config, data=replace(config.data, train_split="test"))
    with pytest.raises(UserError, match=r"--probe.folds speakers needs 3 speakers, .*; there are 2"):
        load_folds(few, replace(probe, test_split="missing"))
    with pytest.raises(UserError, match=r"no split 'missing' to test on: .* --probe.folds speakers"):
        load_folds(config, replace(PROBE, test_split="missing"))


def test_the_strongest_regularisation_within_one_standard_error_is_chosen(monkeypatch):
    """Five speakers differ much, by C from 0.01 on alike: 10 is best by less than the error of the difference."""
    gain = dict.fromkeys(INVERSE_REGULARISATION, 0.0) | {1e-2: 0.50, 10.0: 0.52}
    gain |= {c: 0.49 for c in INVERSE_REGULARISATION if 1e-2 < c < 10.0}
    wobble = np.array([0.05, -0.05, 0.04, -0.04, 0.0])
    losses = [
        [speaker - gain[c] + (wobble[speaker] if c < 10.0 else 0.0) for c in INVERSE_REGULARISATION]
        for speaker in range(5)
    ]
    given = iter(losses)
    monkeypatch.setattr(linear_probes, "iter_folds", lambda targets, speakers: ((fold, fold) for fold in range(5)))
    monkeypatch.setattr(linear_probes, "_losses", lambda *_: next(given))
    assert choose_regularisation(np.zeros((1, 5, 1)), np.zeros(5, np.int64), np.arange(5)) == 1e-2
    with_one_fold = iter([losses[0]])
    monkeypatch.setattr(linear_probes, "iter_folds", lambda targets, speakers: iter([(0, 0)]))
    monkeypatch.setattr(linear_probes, "_losses", lambda *_: next(with_one_fold))
    assert choose_regularisation(np.zeros((1, 5, 1)), np.zeros(5, np.int64), np.arange(5)) == 10.0


@pytest.mark.parametrize(("num_clips", "width"), [(40, 300), (200, 20)])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_probe_is_scikit_learns_regression_on_standardised_features(num_clips, width, num_classes):
    rng = np.random.default_rng(0)
    targets = np.arange(num_clips) % num_classes
    features = rng.normal(size=(num_clips, width)) * rng.uniform(0.1, 9, size=width) + targets[:, None]
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, tol=1e-8)).fit(features, targets)
    ours = fit_probe(features[None], targets, 0.1)
    others = rng.normal(size=(50, width)) * 3
    known = plain.predict(others)
    assert (ours.predict(others) == known).mean() > 0.97
    assert ours.loss(others, known) == pytest.approx(
        log_loss(known, plain.predict_proba(others), labels=plain.classes_), abs=1e-3
    )
    assert ours.loss(others, np.full(50, 9)) == 30.0  # an emotion that nobody spoke


def test_splits_with_disjoint_speakers_are_unchanged():
    train = [clip_of(name, emotion) for name in "ab" for emotion in ("happy", "sad")]
    test = [clip_of("c")]
    found = divide_by_speaker(train, test)
    assert found.train is train and found.test is test and found.labels == ("happy", "sad")


def test_too_little_to_learn_from():
    with pytest.raises(UserError, match="2 speakers and 2 emotions"):
        divide_by_speaker([clip_of("a"), clip_of("a", "sad")], [clip_of("b")])
    with pytest.raises(UserError, match="all clips are spoken by 'a'"):
        divide_by_speaker([clip_of("a")], [clip_of("a")])
    pair = [clip_of(name, emotion) for name in "ab" for emotion in ("happy", "sad")]
    with pytest.raises(UserError, match="emotion 'bored' is tested but no training speaker has it"):
        divide_by_speaker(pair, [clip_of("c", "bored")])


def test_a_corpus_without_emotions(config):
    with pytest.raises(
        UserError, match=r"32 samples .* lack \{'emotion': 32\}: .*columns speaker and emotion of datasets"
    ):
        load_folds(config, replace(PROBE, test_split="unlabelled"))


def test_regularisation_is_chosen_across_speakers():
    """A feature that identifies the speaker helps on known speakers and misleads on others."""
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(6), 20)
    targets = np.tile([0, 1], 60)
    hint = targets + rng.normal(scale=0.5, size=120)
    memory = rng.normal(scale=1.0, size=(120, 300))
    chosen = choose_regularisation(np.concatenate([hint[:, None], memory], axis=1)[None], targets, speakers)
    assert chosen < 1.0
    assert choose_regularisation(np.zeros((1, 120, 4)), targets, speakers) == 1e-4  # nothing to learn: the strongest


def test_augmentation_masks_one_span_with_the_mean_and_adds_noise():
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(50, 4)).astype(np.float16)
    np.testing.assert_array_equal(augment(audio, 0.0, 0.0, rng), audio)
    masked = [augment(audio, 0.4, 0.0, rng) for _ in range(30)]
    mean = audio.astype(np.float32).mean(axis=0).astype(np.float16)
    lengths = []
    for copy in masked:
        changed = np.flatnonzero((copy != audio).any(axis=1))
        lengths.append(len(changed))
        if len(changed):
            assert changed[-1] - changed[0] + 1 == len(changed)
            assert (copy[changed] == mean).all()
    assert 15 < max(lengths) <= 20 and len(set(lengths)) > 5
    noisy = augment(audio, 0.0, 0.5, rng).astype(np.float32) - audio
    np.testing.assert_allclose(noisy.std(axis=0), 0.5 * audio.astype(np.float32).std(axis=0), rtol=0.3)
    assert augment(np.zeros((0, 4), np.float16), 0.4, 0.5, rng).shape == (0, 4)


def test_a_recording_without_frames_is_no_error(config, clips):
    silent = replace(clips.test[0], audio=np.zeros((0, AUDIO_DIM), np.float16))
    with_silence = replace(clips, test=[silent, *clips.test[1:]])
    assert np.isfinite(probe_whisper([with_silence], PROBE).accuracy)
    assert torch.isfinite(
        torch.tensor(probe_system(config, system_of(config, "acoustic"), folds=[with_silence]).accuracy)
    )


def test_tables_show_the_baseline_and_the_accuracy(clips):
    result = replace(
        probe_whisper([clips], PROBE), accuracy=75.0, low=60.04, high=90.0, confusion=[[1, 0, 0], [0, 2, 0], [1, 0, 4]]
    )
    assert emotion_rows([result])[1] == ["whisper", "mean frame", "probe", "75.0 [60.0, 90.0]", "50.0"]
    assert confusion_rows(result) == [
        ["true \\ predicted", "angry", "happy", "neutral"],
        ["angry", "1", "0", "0"],
        ["happy", "0", "2", "0"],
        ["neutral", "1", "0", "4"],
    ]
    assert result.record()["num_test"] == 8
    page = emotion_page("clips", [result])
    for text in (page.terminal(), page.markdown(), page.html({"accuracy.png": draw_accuracy("clips", [result])})):
        assert "75.0 [60.0, 90.0]" in text and "true \\ predicted" in text and "2 other speakers" in text


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (ProbeConfig(lrs=()), "--probe.lrs is empty"),
        (ProbeConfig(test_split="train"), "are both 'train': test on another split"),
    ],
)
def test_settings_that_cannot_work(probe, message):
    with pytest.raises(ValueError, match=message):
        check_probe(probe, "train")


def test_settings_without_effect_are_named():
    probe = ProbeConfig(mask_fraction=0.5, batch_size=8)
    assert ignored_probe_settings(probe, True) == ["--probe.mask-fraction has no effect: --probe.augmented-copies is 0"]
    assert ignored_probe_settings(replace(probe, augmented_copies=1), False) == [
        "--probe.batch-size has no effect: --methods does not name finetune"
    ]
