"""Voices: speech of a sensible length, the same in every process, noise at the level that was asked for."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from brewclip.scenes.captions import EMOTIONS
from brewclip.scenes.voices import (
    NOISES,
    SAMPLE_RATE_HZ,
    SPEAKERS,
    add_noise,
    sample_voice,
    speak,
    speaker_voice,
    with_emotion,
)

TEXT = "There is a large grey elephant at the top left."


def say(speaker: str, emotion: str = "neutral", text: str = TEXT) -> np.ndarray:
    return speak(text, with_emotion(speaker_voice(speaker), emotion), np.random.default_rng(0))


def loudness(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def middle_pitch_hz(waveform: np.ndarray) -> float:
    """Median pitch of the loud frames, by autocorrelation between 60 and 400 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 1024)[::512]
    loud = frames[frames.std(axis=1) > 0.5 * frames.std(axis=1).max()]
    lags = np.arange(SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 60)
    best = [lags[np.argmax([np.dot(frame[lag:], frame[:-lag]) for lag in lags])] for frame in loud]
    return SAMPLE_RATE_HZ / float(np.median(best))


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_speech_has_a_plausible_length_and_level(speaker):
    waveform = say(speaker)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert 1.8 < len(waveform) / SAMPLE_RATE_HZ < 4.5  # ten words
    assert 0.1 < np.abs(waveform).max() <= 1


def test_more_words_take_longer():
    assert len(say(SPEAKERS[0])) > len(say(SPEAKERS[0], text="A red car.")) > 0.5 * SAMPLE_RATE_HZ


def test_several_sentences_are_spoken_one_after_the_other():
    assert len(say(SPEAKERS[0], text=f"{TEXT} {TEXT}")) > 1.8 * len(say(SPEAKERS[0]))


@pytest.mark.slow
def test_speech_and_noise_are_the_same_in_another_process():
    script = (
        "import hashlib, numpy as np; from brewclip.scenes.voices import *; r = np.random.default_rng(5); "
        f"w = speak({TEXT!r}, sample_voice(r), r); w = add_noise(w, 3.0, r); "
        "print(hashlib.sha256(w.tobytes()).hexdigest())"
    )
    rng = np.random.default_rng(5)
    here = add_noise(speak(TEXT, sample_voice(rng), rng), 3.0, rng)
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_speakers_sound_different():
    assert len({sample_voice(np.random.default_rng(i)).speaker for i in range(200)}) == len(SPEAKERS) >= 10
    assert middle_pitch_hz(say("speaker-02")) < 130 < 160 < middle_pitch_hz(say("speaker-07"))


def test_a_speaker_varies_from_utterance_to_utterance():
    rng = np.random.default_rng(0)
    first, second = sample_voice(rng, "speaker-03"), sample_voice(rng, "speaker-03")
    assert first.speaker == second.speaker == "speaker-03"
    assert first != second


def test_emotions_can_be_heard():
    spoken = {emotion: say("speaker-01", emotion) for emotion in EMOTIONS}
    assert loudness(spoken["sad"]) < loudness(spoken["neutral"]) < loudness(spoken["angry"])
    assert len(spoken["angry"]) < len(spoken["neutral"]) < len(spoken["sad"])
    assert middle_pitch_hz(spoken["happy"]) > 1.1 * middle_pitch_hz(spoken["sad"])
    assert with_emotion(speaker_voice("speaker-01"), "neutral") == speaker_voice("speaker-01")


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0])
def test_noise_is_at_the_asked_level(kind, snr_db):
    speech = 0.1 * say(SPEAKERS[0])  # quiet enough that the sum is not scaled down
    noise = add_noise(speech, snr_db, np.random.default_rng(1), kind) - speech
    assert 20 * np.log10(loudness(speech) / loudness(noise)) == pytest.approx(snr_db, abs=0.01)


def test_loud_noise_does_not_clip():
    assert np.abs(add_noise(say(SPEAKERS[0]), -20.0, np.random.default_rng(1), "white")).max() < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: speaker_voice("speaker-99"), "speaker-01 to speaker-12"),
        (lambda: with_emotion(speaker_voice("speaker-01"), "bored"), "neutral, happy, sad, angry"),
        (lambda: speak("", speaker_voice("speaker-01"), np.random.default_rng(0)), "nothing to speak"),
        (lambda: add_noise(np.zeros(8, np.float32), 0, np.random.default_rng(0)), "silent or empty"),
        (
            lambda: add_noise(np.ones(8, np.float32), 0, np.random.default_rng(0), "rain"),
            "babble, pink, white",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
