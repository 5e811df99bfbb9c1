"""Windows over a recording: where they are cut, how far they are padded, and Whisper's encoder over them."""

from typing import NamedTuple

import numpy as np
import torch
import whisper
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from whisper.audio import HOP_LENGTH, N_SAMPLES, SAMPLE_RATE
from whisper.model import AudioEncoder

FRAME_SAMPLES = 2 * HOP_LENGTH  # the encoder halves the mel's rate: a frame is 20 ms
MAX_SAMPLES = N_SAMPLES  # 30 s, what the encoder was trained on

# A window without enough silence behind the speech makes the decoder repeat itself: measured 4 of 8 clips at
# 4 s, none at 8 s. 40 synthetic captions of 3.2 s cost 0.29 CPU-s each so, and 1.15 padded to 30 s; word
# errors were 3.0 and 2.5 % (about 12 and 10 words).
PADDED_SECONDS = (8, 12, 16, 20, 24, 30)
_SILENCE_BEHIND_SECONDS = 4
_SEARCH_FRAMES = 100  # a cut is looked for in the last 2 s of a window
_SMOOTHING_FRAMES = 5  # over 100 ms, so that a cut falls between words and not into a plosive's gap


class Window(NamedTuple):
    """A piece of a recording, in samples, and the length it is padded to."""

    start: int
    stop: int
    padded_seconds: int

    @property
    def num_frames(self) -> int:
        """Number of encoder frames that lie in the recording; the last may reach beyond it."""
        return -(-(self.stop - self.start) // FRAME_SAMPLES)


def cut_windows(waveform: NDArray[np.float32]) -> list[Window]:
    """Cut a recording into windows of at most 30 s that cover every sample once.

    A recording of up to 30 s is one window. In a longer one, each cut is at the quietest place of the
    window's last 2 s, on a frame's border.
    """
    windows, start = [], 0
    while len(waveform) - start > MAX_SAMPLES:
        stop = start + _quietest_cut(waveform[start : start + MAX_SAMPLES])
        windows.append(Window(start, stop, PADDED_SECONDS[-1]))
        start = stop
    if len(waveform) > start:
        seconds = (len(waveform) - start) / SAMPLE_RATE + _SILENCE_BEHIND_SECONDS
        padded_seconds = next((p for p in PADDED_SECONDS if p >= seconds), PADDED_SECONDS[-1])
        windows.append(Window(start, len(waveform), padded_seconds))
    return windows


def first_window(waveform: NDArray[np.float32]) -> list[Window]:
    """Return the first 30 s of a recording as the one window, padded to 30 s; none for an empty recording."""
    return [Window(0, min(len(waveform), MAX_SAMPLES), PADDED_SECONDS[-1])] if len(waveform) else []


def _quietest_cut(waveform: NDArray[np.float32]) -> int:
    tail = waveform[-_SEARCH_FRAMES * FRAME_SAMPLES :].reshape(_SEARCH_FRAMES, FRAME_SAMPLES)
    energy = np.square(tail, dtype=np.float64).mean(axis=1)
    smooth = np.convolve(energy, np.ones(_SMOOTHING_FRAMES), mode="same")
    latest = _SEARCH_FRAMES - 1 - int(np.argmin(smooth[::-1]))  # of equally quiet places, the latest
    return len(waveform) - (_SEARCH_FRAMES - latest) * FRAME_SAMPLES


def compute_mel(samples: NDArray[np.float32], padded_seconds: int, num_mels: int, device: torch.device) -> Tensor:
    """Return the log-mel spectrogram (num_mels, 100 * padded_seconds) of one window, padded with silence."""
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    padding = padded_seconds * SAMPLE_RATE - len(samples)
    return whisper.log_mel_spectrogram(samples, num_mels, padding=padding, device=device)


def encode_mel(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    """Run Whisper's encoder over windows of any length up to 30 s.

    Source: `whisper.model.AudioEncoder.forward`, whose result this is at 30 s; shorter windows take the first
    position codes, as their frames are the first of the same 30 s.

    Args:
        encoder: `whisper.model.Whisper.encoder`.
        mel: (B, num_mels, 2 * T).

    Returns:
        (B, T, audio_dim).
    """
    x = F.gelu(encoder.conv1(mel))
    x = F.gelu(encoder.conv2(x)).transpose(1, 2)
    x = (x + encoder.positional_embedding[: x.shape[1]]).to(x.dtype)
    for block in encoder.blocks:
        x = block(x)
    return encoder.ln_post(x)
