"""Recordings that the small system hears numbers in."""

import io

import numpy as np
import soundfile


def spoken(number: int, seconds: float = 0.2, seed: int = 0, **settings: str) -> bytes:
    """Return a sound file in which the small system hears "image NUMBER"; `seed` makes it another recording."""
    tone = np.sin(2 * np.pi * (440 + seed) * np.arange(round(16_000 * seconds)) / 16_000)
    return sound_file(tone / np.abs(tone).max() * (0.5 + number / 100), **settings)


def sound_file(waveform: np.ndarray, rate_hz: int = 16_000, **settings: str) -> bytes:
    """Return a waveform as a sound file, WAV by default."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, **({"format": "WAV", "subtype": "FLOAT"} | settings))
    return buffer.getvalue()
