"""Frozen Whisper over whole recordings: what was said, how sure that is, and the encoder's frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import LANGUAGES
from whisper.utils import compression_ratio

from brewclip.models.decoding import Reading, decode_windows, detect_languages
from brewclip.models.windows import Window, compute_mel, cut_windows, encode_mel, first_window

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SILENT_PEAK = 1e-4  # three steps of 16-bit audio: nothing can be heard, and nothing is decoded


@dataclass(frozen=True)
class Speech:
    """What Whisper made of one recording.

    A recording that Whisper's own rules distrust has an empty transcript, so that silence and noise do not
    become invented sentences; its frames are there all the same. Of a recording of several windows, the
    distrusted ones add nothing to the transcript, and it is rejected only if all were.

    Attributes:
        transcript: may be empty.
        language: code such as "en", given or detected in the first window.
        avg_logprob: mean log probability of a token.
        no_speech_prob: probability of silence, of the least silent window.
        compression_ratio: of the text; high for repetition. Of several windows, the highest.
        temperature: 0 if greedy decoding was trusted; of several windows, the highest.
        rejected: why the transcript is empty: "no_speech", "repetitive", "low_confidence"; or None.
        features: (frames, audio_dim) float16, 20 ms a frame, of the recording only, without padding.
    """

    transcript: str
    language: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    rejected: str | None
    features: NDArray[np.float16]


class _Job(NamedTuple):
    """One window to be read."""

    recording: int
    place: int
    window: Window
    samples: NDArray[np.float32]


class SpeechReader:
    """Transcribes recordings and keeps the encoder's frames.

    A recording is read in windows of at most 30 s, cut where it is quiet and decoded without timestamps, each
    for itself; short windows are padded less than Whisper's 30 s (see `windows`). Decoding retries and
    rejects as `whisper.transcribe` does (see `decoding`). Neither order nor batch changes what a recording
    reads as, up to rounding.

    Args:
        model: Whisper, on the device to compute on.
        language: code such as "en"; None detects it for each recording.
        batch_size: windows encoded and decoded together.
        whole_window: keep what the released code used: the first 30 s only, with the frames of their padding.
        precision: of the encoder, "float32", "bfloat16" or "float16"; decoding is float32. Features keep a
            cosine above 0.999 in bfloat16. Measure before choosing it: a CPU without AMX took 0.26
            instead of 0.18 CPU-s for 8 s.

    Raises:
        ValueError: if the model does not know the language, or the precision or batch size is impossible.
    """

    def __init__(
        self,
        model: Whisper,
        language: str | None = "en",
        batch_size: int = 16,
        *,
        whole_window: bool = False,
        precision: str = "float32",
    ) -> None:
        if language is not None and language not in LANGUAGES:
            raise ValueError(f"unknown language {language!r}; give a code such as 'en', or None to detect it")
        if language not in (None, "en") and not model.is_multilingual:
            raise ValueError(f"language is {language!r}, but this Whisper knows English only; choose one without '.en'")
        if precision not in _PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(_PRECISIONS)}")
        if batch_size < 1:
            raise ValueError(f"batch size is {batch_size}; it must be 1 or more")
        self.model = model
        self.language = language
        self.batch_size = batch_size
        self.whole_window = whole_window
        self.precision = _PRECISIONS[precision]

    @torch.no_grad()
    def read(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Speech]:
        """Read recordings.

        Args:
            waveforms: float32 mono at 16 kHz in [-1, 1], each (samples,); empty ones are allowed.

        Raises:
            ValueError: if a waveform has another shape or is not finite.
        """
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or not np.isfinite(waveform).all():
                raise ValueError(f"waveform {index} has shape {waveform.shape}; finite samples (samples,) are needed")
        languages: dict[int, str] = {}
        readings: list[dict[int, tuple[Reading, NDArray[np.float16]]]] = [{} for _ in waveforms]
        for batch in self._iter_batches(waveforms):
            features = self._encode(batch)
            for job, row, reading in zip(batch, features, self._decode(batch, features, languages), strict=True):
                num_frames = None if self.whole_window else job.window.num_frames
                frames = row[:num_frames].half().cpu().numpy()
                readings[job.recording][job.place] = (reading, frames)
        return [
            self._join([parts[place] for place in sorted(parts)], languages.get(recording))
            for recording, parts in enumerate(readings)
        ]

    def _iter_batches(self, waveforms: Sequence[NDArray[np.float32]]) -> Iterator[list[_Job]]:
        """Yield windows of one padded length; first windows first, as the others need their language."""
        jobs = [
            _Job(recording, place, window, waveform[window.start : window.stop])
            for recording, waveform in enumerate(waveforms)
            for place, window in enumerate(first_window(waveform) if self.whole_window else cut_windows(waveform))
        ]
        jobs.sort(key=lambda job: (job.place > 0, job.window.padded_seconds, len(job.samples)))
        start = 0
        while start < len(jobs):
            stop = start + 1
            while stop < min(len(jobs), start + self.batch_size) and _fits(jobs[start], jobs[stop]):
                stop += 1
            yield jobs[start:stop]
            start = stop

    def _encode(self, batch: list[_Job]) -> Tensor:
        """Return the frames (B, T, audio_dim) of the padded windows, float32."""
        device, num_mels = self.model.device, self.model.dims.n_mels
        mel = torch.stack([compute_mel(job.samples, job.window.padded_seconds, num_mels, device) for job in batch])
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            return encode_mel(self.model.encoder, mel).float()

    def _decode(self, batch: list[_Job], features: Tensor, languages: dict[int, str]) -> list[Reading]:
        """Read the windows; adds the languages of first windows to `languages`."""
        if self.language is not None:
            languages.update({job.recording: self.language for job in batch})
        elif batch[0].place == 0:
            detected = detect_languages(self.model, features)
            languages.update({job.recording: found for job, found in zip(batch, detected, strict=True)})
        readings: list[Reading | None] = [
            _SILENCE if np.abs(job.samples).max() < _SILENT_PEAK else None for job in batch
        ]
        for language in sorted({languages[job.recording] for job in batch}):
            rows = [
                row for row, job in enumerate(batch) if readings[row] is None and languages[job.recording] == language
            ]
            if rows:
                samples = [batch[row].samples for row in rows]
                padded_seconds = batch[0].window.padded_seconds
                decoded = decode_windows(self.model, features[rows], language, padded_seconds, samples)
                for row, reading in zip(rows, decoded, strict=True):
                    readings[row] = reading
        return [reading for reading in readings if reading is not None]

    def _join(self, parts: list[tuple[Reading, NDArray[np.float16]]], language: str | None) -> Speech:
        readings = [reading for reading, _ in parts] or [_SILENCE]
        frames = [features for _, features in parts]
        width = self.model.dims.n_audio_state
        weights = [reading.num_tokens + 1 for reading in readings]  # the end of the text is a token too
        logprobs = [reading.avg_logprob for reading in readings]
        is_rejected = all(reading.rejected for reading in readings)
        return Speech(
            transcript=" ".join(reading.transcript for reading in readings if reading.transcript),
            language=language or self.language or "en",
            avg_logprob=float(np.average(logprobs, weights=weights)),
            no_speech_prob=min(reading.no_speech_prob for reading in readings),
            compression_ratio=max(reading.compression_ratio for reading in readings),
            temperature=max(reading.temperature for reading in readings),
            rejected=readings[0].rejected if is_rejected else None,
            features=np.concatenate(frames) if frames else np.zeros((0, width), np.float16),
        )


_SILENCE = Reading(
    transcript="",
    avg_logprob=0.0,
    no_speech_prob=1.0,
    compression_ratio=compression_ratio(""),
    temperature=0.0,
    num_tokens=0,
    rejected="no_speech",
)


def _fits(first: _Job, other: _Job) -> bool:
    same_length = first.window.padded_seconds == other.window.padded_seconds
    return same_length and (first.place > 0) == (other.place > 0)
