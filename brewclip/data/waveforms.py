"""Waveforms instead of Whisper's features: decoding of recordings as a corpus stores them, and random crops of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from brewclip.audio import SAMPLE_RATE_HZ, UndecodableAudio, decode_audio
from brewclip.data.batches import InputLengths, Pair
from brewclip.data.schema import BadSample, Sample

FRAME_SAMPLES = SAMPLE_RATE_HZ // 50  # 20 ms, the frames of HuBERT and of Whisper
_NO_TOKENS = torch.zeros(1, dtype=torch.int64)


class WaveformDecoder:
    """Decode a stored sample of a corpus, before extraction, to a `Pair` with its waveform; no text is read.

    Args:
        image_of: decodes the image of a sample to (3, S, S) uint8.
        max_audio_frames: longest speech in frames of 20 ms; more is truncated; 0 keeps all.
    """

    def __init__(self, image_of: Callable[[Sample], np.ndarray], max_audio_frames: int) -> None:
        self.image_of, self.max_audio_frames = image_of, max_audio_frames

    def __call__(self, sample: Sample) -> Pair:
        """Decode a sample; raises `BadSample` with the cause image, audio, or one of `UndecodableAudio`."""
        return self.pair_of(sample, waveform_of(sample))

    def pair_of(self, sample: Sample, waveform: NDArray[np.float32]) -> Pair:
        """Return the pair of a sample whose waveform, (samples,), is decoded already."""
        audio = waveform[: self.max_audio_frames * FRAME_SAMPLES or None]
        num_frames, num_kept = (-(-len(one) // FRAME_SAMPLES) for one in (waveform, audio))
        lengths = InputLengths(frames=num_frames, truncated_frames=num_frames - num_kept)
        text, image_id = str(sample.metadata.get("text", "")), str(sample.metadata["image_id"])
        return Pair(sample.key, image_id, self.image_of(sample), _NO_TOKENS, audio, text, lengths)


def waveform_of(sample: Sample) -> NDArray[np.float32]:
    """Return the recording of a sample, (samples,) in [-1, 1].

    Raises:
        BadSample: if there is none, or with the cause why it cannot be decoded.
    """
    if sample.audio is None:
        raise BadSample("audio", f"sample {sample.key!r} has no recording: it is read before extraction")
    try:
        return decode_audio(bytes(sample.audio))
    except UndecodableAudio as error:
        raise BadSample(error.cause, f"sample {sample.key!r}: {error}") from error


@dataclass(frozen=True)
class RandomCrop:
    """Random crops of waveforms; which one depends on seed and position alone, so that any worker makes the same.

    Source: SpeechCLIP, which crops its training recordings so; every start of a crop is equally likely.

    Attributes:
        num_samples: of a crop; a recording that is not longer stays whole. 0 crops none.
        seed: of the run.
        step: samples between the starts of crops, the last of which ends with the recording; the fewer starts, the
            more often a crop repeats.
    """

    num_samples: int
    seed: int
    step: int = 1

    def __call__(self, pair: Pair, position: int) -> Pair:
        """Crop the waveform of a pair at a position of the order, which counts from the start of training."""
        spare = len(pair.audio) - self.num_samples
        if not self.num_samples or spare <= 0:
            return pair
        number = int(np.random.default_rng([self.seed, position]).integers(-(-spare // self.step) + 1))
        start = min(number * self.step, spare)
        return replace(pair, audio=pair.audio[start : start + self.num_samples].copy())  # and free the rest
