"""Chunks of a recording: split points, padded lengths, log-mel, and Whisper's encoder for chunks below 30 s."""

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
MAX_SECONDS = MAX_SAMPLES // SAMPLE_RATE

# Without enough silence behind the speech the decoder repeats itself or invents. Word errors on 240 clips of real,
# emphatic speech of 3 to 5 s, greedy, by padded length, in % (rejected ones count), and CPU-s a clip:
#   8 s 14.9 (0.67), 10 s 5.5 (0.70), 12 s 0.83 (0.50), 16 s 0.42 (0.64), 20 s 0.42 (0.84), 30 s 0.56 (1.40).
# The one clip that fails at 12 s repeats itself, and is right at 30 s. 120 isolated words of 0.2 to 0.9 s are the
# opposite: 66 are right and trusted at 8 s, 60 at 10 s, 61 at 12 s, 41 at 30 s; none that fails at 8 s passes as the
# right word at a longer one.
_PADDED_SECONDS = (8, 12, 16, 20, 24, MAX_SECONDS)
_SILENCE_BEHIND_SECONDS = 4
_LEAST_SECONDS = 12
_WORD_SECONDS = 1.5
_SEARCH_FRAMES = 100  # a split point is searched in the last 2 s of a chunk
_SMOOTHING_FRAMES = 5  # over 100 ms, so that a split falls between words, not into a plosive's gap


class Chunk(NamedTuple):
    """A piece of a recording, in samples, and the lengths that it is padded to.

    Attributes:
        start, stop: in samples of the recording.
        padded_seconds: lengths to decode it at, in order; the next one is tried if the text repeats itself.
    """

    start: int
    stop: int
    padded_seconds: tuple[int, ...]

    @property
    def num_frames(self) -> int:
        """Number of encoder frames within the recording; the last may extend beyond it."""
        return -(-(self.stop - self.start) // FRAME_SAMPLES)


def split_into_chunks(waveform: NDArray[np.float32], *, always_30_seconds: bool = False) -> list[Chunk]:
    """Split a recording into chunks of at most 30 s that cover every sample once.

    A recording of up to 30 s is one chunk. A longer one is split at the quietest point of each chunk's last 2 s, on a
    frame boundary.

    Args:
        waveform: (samples,).
        always_30_seconds: pad every chunk to 30 s, as Whisper does.
    """
    chunks, start = [], 0
    while len(waveform) - start > MAX_SAMPLES:
        stop = start + _quietest_sample(waveform[start : start + MAX_SAMPLES])
        chunks.append(Chunk(start, stop, (MAX_SECONDS,)))
        start = stop
    if len(waveform) > start:
        lengths = (MAX_SECONDS,) if always_30_seconds else _padded_seconds((len(waveform) - start) / SAMPLE_RATE)
        chunks.append(Chunk(start, len(waveform), lengths))
    return chunks


def _padded_seconds(seconds: float) -> tuple[int, ...]:
    """Return the padded lengths that a chunk is decoded at, in order."""
    least = 0 if seconds < _WORD_SECONDS else _LEAST_SECONDS
    wanted = max(least, seconds + _SILENCE_BEHIND_SECONDS)
    first = next((length for length in _PADDED_SECONDS if length >= wanted), MAX_SECONDS)
    return (first,) if first in (_PADDED_SECONDS[0], MAX_SECONDS) else (first, MAX_SECONDS)


def _quietest_sample(waveform: NDArray[np.float32]) -> int:
    tail = waveform[-_SEARCH_FRAMES * FRAME_SAMPLES :].reshape(_SEARCH_FRAMES, FRAME_SAMPLES)
    energy = np.square(tail, dtype=np.float64).mean(axis=1)
    smooth = np.convolve(energy, np.ones(_SMOOTHING_FRAMES), mode="same")
    latest = _SEARCH_FRAMES - 1 - int(np.argmin(smooth[::-1]))  # of equally quiet frames, the latest
    return len(waveform) - (_SEARCH_FRAMES - latest) * FRAME_SAMPLES


def compute_mel(samples: NDArray[np.float32], padded_seconds: int, num_mels: int, device: torch.device) -> Tensor:
    """Return the log-mel spectrogram (num_mels, 100 * padded_seconds) of one chunk, padded with silence."""
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    padding = padded_seconds * SAMPLE_RATE - len(samples)
    return whisper.log_mel_spectrogram(samples, num_mels, padding=padding, device=device)


def encode_mel(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    """Run Whisper's encoder over chunks of any length up to 30 s.

    Source: `whisper.model.AudioEncoder.forward`, which this equals at 30 s; shorter chunks take the first position
    embeddings, as their frames are the first of the same 30 s.

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
