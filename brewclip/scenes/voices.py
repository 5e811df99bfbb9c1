"""Offline speech synthesis: hibari-tts with modified pitch, formants, rate, loudness and brightness; noise.

hibari predicts, per frame, the parts of a spectrum and a pitch curve, and synthesizes sound from them; the voice is
modified between the two. So one bundled voice yields a dozen speakers and four emotions. Results are deterministic:
same text, voice and generator state, same samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import soxr
from hibari import Hibari, dsp

from brewclip.scenes.captions import EMOTIONS

SAMPLE_RATE_HZ = 16_000
NOISES = ("babble", "pink", "white")
VOICED_HZ = 40.0  # hibari's own threshold: below it a frame has no pitch
PEAK = 0.98  # louder speech is scaled down, never clipped

_BABBLE_TEXTS = (
    "I went to the market this morning and there was hardly anyone there, so I went home and made soup.",
    "You would not believe what happened on the way to work, the street was closed and nobody could say why.",
    "They said the weather would get better by the weekend, but honestly it looks like more rain to me.",
)
_BABBLE_TALKERS = 5


@dataclass(frozen=True)
class Voice:
    """Parameters of a voice; 1 or 0 dB leaves hibari's voice unchanged.

    Args:
        speaker: who speaks, one of SPEAKERS.
        pitch: factor on the pitch; hibari speaks at about 200 Hz.
        pitch_range: factor on the pitch's excursions around its middle, in log pitch; 0 is monotonous.
        formant: factor on the frequencies of the spectral envelope; below 1 means a longer vocal tract.
        rate: factor on the speaking rate.
        energy_db: loudness.
        brightness_db: tilt of the harmonics, from 0 dB at 0 Hz to this at 4 kHz and above.
        breath_db: level of the breath noise.
    """

    speaker: str
    pitch: float = 1.0
    pitch_range: float = 1.0
    formant: float = 1.0
    rate: float = 1.0
    energy_db: float = 0.0
    brightness_db: float = 0.0
    breath_db: float = 0.0


_VOICES = tuple(
    Voice(f"speaker-{number:02d}", *settings)
    for number, settings in enumerate(
        (
            # pitch, range, formant, rate, energy, brightness, breath
            (1.00, 1.0, 1.00, 1.00, 0.0, 0.0, 0.0),
            (0.56, 0.9, 0.87, 0.97, 0.0, 0.0, -1.0),
            (1.15, 1.1, 1.05, 1.05, -1.0, 1.0, 1.0),
            (0.62, 1.1, 0.89, 1.08, 1.0, 1.5, 0.0),
            (0.92, 0.8, 0.97, 0.92, -1.5, -1.5, 2.0),
            (0.50, 0.8, 0.85, 0.92, 0.5, -1.0, 0.0),
            (1.28, 1.2, 1.10, 1.00, 0.0, 0.5, 0.0),
            (0.70, 1.0, 0.91, 1.02, -0.5, 0.0, 1.0),
            (1.08, 0.9, 1.02, 1.12, 1.0, 1.0, -1.0),
            (0.58, 1.2, 0.90, 1.05, -1.0, 0.5, 2.0),
            (0.86, 1.1, 0.95, 0.98, 0.5, 0.0, 0.0),
            (0.65, 0.9, 0.86, 0.90, 0.0, -0.5, 1.0),
        ),
        start=1,
    )
)
SPEAKERS: tuple[str, ...] = tuple(voice.speaker for voice in _VOICES)

# Factors on pitch, range and rate, and dB added, after Banse and Scherer (1996) on acted emotions.
_EMOTION_CHANGES = {
    "neutral": (1.00, 1.0, 1.00, 0.0, 0.0, 0.0),
    "happy": (1.20, 1.6, 1.08, 2.5, 1.5, 0.0),
    "sad": (0.92, 0.45, 0.82, -5.0, -4.0, 4.0),
    "angry": (1.06, 1.3, 1.14, 6.0, 6.0, -2.0),
}


def speaker_voice(speaker: str) -> Voice:
    """Return a speaker's base voice.

    Raises:
        ValueError: if there is no such speaker.
    """
    if speaker not in SPEAKERS:
        raise ValueError(f"unknown speaker {speaker!r}; there are {SPEAKERS[0]} to {SPEAKERS[-1]}")
    return _VOICES[SPEAKERS.index(speaker)]


def sample_voice(rng: np.random.Generator, speaker: str | None = None) -> Voice:
    """Return a voice for one utterance: a speaker, sampled if not given, with small variations.

    Raises:
        ValueError: if there is no such speaker.
    """
    voice = speaker_voice(SPEAKERS[int(rng.integers(len(SPEAKERS)))] if speaker is None else speaker)
    pitch, pitch_range, rate = np.exp(rng.normal(0.0, (0.04, 0.10, 0.05)))
    energy_db, brightness_db, breath_db = rng.normal(0.0, (1.5, 0.7, 0.7))
    return _changed(voice, pitch, pitch_range, rate, energy_db, brightness_db, breath_db)


def with_emotion(voice: Voice, emotion: str) -> Voice:
    """Return the voice in one of EMOTIONS.

    Raises:
        ValueError: if the emotion is unknown.
    """
    if emotion not in EMOTIONS:
        raise ValueError(f"unknown emotion {emotion!r}; allowed: {', '.join(EMOTIONS)}")
    return _changed(voice, *_EMOTION_CHANGES[emotion])


def _changed(
    voice: Voice,
    pitch: float,
    pitch_range: float,
    rate: float,
    energy_db: float,
    brightness_db: float,
    breath_db: float,
) -> Voice:
    return replace(
        voice,
        pitch=float(voice.pitch * pitch),
        pitch_range=float(voice.pitch_range * pitch_range),
        rate=float(voice.rate * rate),
        energy_db=float(voice.energy_db + energy_db),
        brightness_db=float(voice.brightness_db + brightness_db),
        breath_db=float(voice.breath_db + breath_db),
    )


def speak(text: str, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Speak a text of one or more sentences.

    Args:
        text: English words.
        voice: how to speak them.
        rng: for the breath noise and the pauses between sentences.

    Returns:
        float32 (samples,), mono, 16 kHz, in [-1, 1].

    Raises:
        ValueError: if the text contains no words.
    """
    sentences = _tts().phonemize(text)
    if not sentences:
        raise ValueError(f"nothing to speak in {text!r}; give a text with words")
    parts: list[np.ndarray] = []
    for phonemes in sentences:
        parts += [
            _speak_phonemes(phonemes, voice, rng),
            np.zeros(int(dsp.SR * rng.uniform(0.0, 0.2)), np.float32),
        ]
    waveform = soxr.resample(np.concatenate(parts[:-1]), dsp.SR, SAMPLE_RATE_HZ).astype(np.float32)
    waveform *= np.float32(10 ** (voice.energy_db / 20))
    return _limited(waveform)


@lru_cache(maxsize=1)
def _tts() -> Hibari:
    """Return the bundled voice, single-threaded, loaded once per process."""
    return Hibari(threads=1)


def _speak_phonemes(phonemes: str, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Return one sentence at hibari's 24 kHz: predict the spectrum, modify the voice, synthesize."""
    tts = _tts()
    inputs = {"ids": np.asarray([tts.ids(phonemes)], np.int64), "speed": np.asarray([voice.rate], np.float32)}
    outputs = (output[0] for output in tts.sess.run(None, inputs))
    harmonics, harmonics_phase, noise, rest, rest_phase, pitch_hz = outputs  # (601, frames) five times, (frames,)
    harmonics, noise, rest = (_shift_formants(part, voice.formant) for part in (harmonics, noise, rest))
    tilt = _tilt(len(harmonics), voice.brightness_db)[:, None]
    return dsp.synth(
        harmonics + tilt,
        _shift_formants(harmonics_phase, voice.formant),
        noise + tilt + _log_gain(voice.breath_db),
        rest + tilt,
        rest_phase,
        _bend_pitch(pitch_hz, voice),
        rng,
    )


def _shift_formants(spectrum: np.ndarray, formant: float) -> np.ndarray:
    """Stretch (bins, frames) along the frequency axis by a factor, repeating the last bin."""
    position = np.minimum(np.arange(len(spectrum)) / formant, len(spectrum) - 1)
    low = np.minimum(position.astype(int), len(spectrum) - 2)
    part = (position - low).astype(np.float32)[:, None]
    return spectrum[low] * (1 - part) + spectrum[low + 1] * part


def _tilt(num_bins: int, brightness_db: float) -> np.ndarray:
    """Return the log gain (bins,), linear up to brightness_db at 4 kHz and constant above."""
    frequency_hz = np.arange(num_bins) * dsp.SR / dsp.N_FFT
    return (np.minimum(frequency_hz / 4000, 1) * _log_gain(brightness_db)).astype(np.float32)


def _log_gain(level_db: float) -> float:
    return level_db / 20 * float(np.log(10))


def _bend_pitch(pitch_hz: np.ndarray, voice: Voice) -> np.ndarray:
    """Scale the pitch and its excursions around the sentence's median; unvoiced frames are unchanged."""
    voiced = pitch_hz > VOICED_HZ
    if not voiced.any():
        return pitch_hz
    log_pitch = np.log(pitch_hz[voiced])
    middle = np.median(log_pitch)
    bent = np.exp(middle + voice.pitch_range * (log_pitch - middle)) * voice.pitch
    result = np.zeros_like(pitch_hz)
    result[voiced] = np.clip(bent, VOICED_HZ + 10, 600)
    return result


def _limited(waveform: np.ndarray) -> np.ndarray:
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform if peak <= PEAK else waveform * np.float32(PEAK / peak)


def add_noise(waveform: np.ndarray, snr_db: float, rng: np.random.Generator, kind: str = "babble") -> np.ndarray:
    """Add noise at a signal-to-noise ratio, both powers taken over the whole recording.

    Args:
        waveform: float32 (samples,), 16 kHz.
        snr_db: 10 log10 of speech power over noise power; scaled down as a whole where the sum would clip.
        rng: for the noise.
        kind: one of NOISES; babble is a mix of other speakers.

    Raises:
        ValueError: if the kind is unknown, or the waveform is silent and has no signal-to-noise ratio.
    """
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    if power == 0:
        raise ValueError("noise cannot be added at a ratio to a silent or empty recording; leave it out")
    noise = make_noise(len(waveform), rng, kind)
    noise_power = float(np.mean(np.square(noise, dtype=np.float64)))
    gain = np.sqrt(power / noise_power / 10 ** (snr_db / 10))
    return _limited((waveform + noise * gain).astype(np.float32))


def make_noise(num_samples: int, rng: np.random.Generator, kind: str) -> np.ndarray:
    """Return one of NOISES, float64 (num_samples,), at an arbitrary level.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in NOISES:
        raise ValueError(f"unknown noise {kind!r}; allowed: {', '.join(NOISES)}")
    if kind == "babble":
        talks = _talks()
        noise = np.zeros(num_samples)
        for talker in rng.choice(len(talks), size=_BABBLE_TALKERS, replace=False):
            start = int(rng.integers(len(talks[talker])))
            noise += np.take(talks[talker], np.arange(start, start + num_samples), mode="wrap")
        return noise
    white = rng.standard_normal(num_samples)
    if kind == "white":
        return white
    spectrum = np.fft.rfft(white)
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))  # power falls with 1 / frequency
    return np.fft.irfft(spectrum, n=num_samples)


@lru_cache(maxsize=1)
def _talks() -> tuple[np.ndarray, ...]:
    """Return the babble speech of every speaker, at one level, the same in every process."""
    talks = []
    for number, speaker in enumerate(SPEAKERS):
        text = _BABBLE_TEXTS[number % len(_BABBLE_TEXTS)]
        talk = speak(text, speaker_voice(speaker), np.random.default_rng(number)).astype(np.float64)
        talks.append(talk / np.sqrt(np.mean(talk**2)))
    return tuple(talks)
