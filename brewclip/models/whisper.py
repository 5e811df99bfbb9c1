"""Frozen Whisper over whole recordings: transcripts, their confidence, and the encoder's frames."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import LANGUAGES
from whisper.utils import compression_ratio

from brewclip.models.audio_chunks import MAX_SAMPLES, MAX_SECONDS, Chunk, compute_mel, encode_mel, split_into_chunks
from brewclip.models.decoding import (
    TASKS,
    TEMPERATURES,
    Alternative,
    Reading,
    decode_chunks,
    detect_languages,
    join_alternatives,
)

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_RETRIES = len(TEMPERATURES) - 1
_SILENT_PEAK = 1e-4  # three steps of 16-bit audio: inaudible, so it is not decoded


@dataclass(frozen=True)
class Speech:
    """Transcript and features of one recording.

    A recording that fails the checks has an empty transcript, so that silence and noise do not become invented
    sentences; its frames are stored all the same. In a recording of several chunks, rejected ones add nothing to the
    transcript, and the recording is rejected only if all are.

    Attributes:
        transcript: may be empty. In English if the task was to translate.
        unfiltered_transcript: with the rejected text, as `whisper.transcribe` returns it.
        greedy_transcript: decoded without sampling, rejected or not; the unfiltered one is that of the last attempt,
            which is sampled at the highest temperature.
        language: that was spoken, a code such as "en", given or detected in the first chunk.
        avg_logprob: mean log probability of a token.
        no_speech_prob: probability of silence, of the least silent chunk.
        compression_ratio: of the text; high for repetition. Of several chunks, the highest.
        temperature: 0 if greedy decoding passed the checks; of several chunks, the highest.
        rejected: why the transcript is empty: "no_speech", "repetitive", "low_confidence"; or None.
        alternatives: the greedy text, alone if it is certain, and sampled ones, each with its mean log probability;
            empty if none were asked for.
        features: (frames, audio_dim) float16, 20 ms a frame, of the recording only, without padding.
    """

    transcript: str
    unfiltered_transcript: str
    greedy_transcript: str
    language: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    rejected: str | None
    alternatives: tuple[tuple[str, float], ...]
    features: NDArray[np.float16]

    def metadata(self) -> dict[str, Any]:
        """Return the fields that are stored with a sample: all but the features."""
        alternatives = [[text, round(avg_logprob, 4)] for text, avg_logprob in self.alternatives]
        return ({"alternatives": alternatives} if alternatives else {}) | {
            "transcript": self.transcript,
            "unfiltered_transcript": self.unfiltered_transcript,
            "greedy_transcript": self.greedy_transcript,
            "language": self.language,
            "avg_logprob": round(self.avg_logprob, 4),
            "no_speech_prob": round(self.no_speech_prob, 4),
            "compression_ratio": round(self.compression_ratio, 4),
            "temperature": self.temperature,
            "rejected": self.rejected,
        }


class _Job(NamedTuple):
    """One chunk to be decoded, at the padded length of this attempt."""

    recording: int
    place: int
    chunk: Chunk
    samples: NDArray[np.float32]
    attempt: int = 0

    @property
    def padded_seconds(self) -> int:
        return self.chunk.padded_seconds[self.attempt]

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt + 1 == len(self.chunk.padded_seconds)

    @property
    def group(self) -> tuple[bool, int, bool]:
        """Key that chunks of a batch share; first chunks sort first, as the others need their language."""
        return self.place > 0, self.padded_seconds, self.is_last_attempt


class SpeechReader:
    """Transcribes recordings and returns the encoder's frames.

    A recording is decoded in chunks of at most 30 s, split where it is quiet, independently and without timestamps;
    short chunks are padded less than Whisper's 30 s, and decoded once more at 30 s if their text repeats itself (see
    `audio_chunks`). What fails Whisper's checks is decoded again with sampling, as in `whisper.transcribe`, and
    rejected if it still fails, which is stricter (see `decoding`). Results do not depend on order or batch, up to
    rounding.

    Args:
        model: Whisper, on the device to compute on.
        language: code such as "en"; None detects it for each recording.
        batch_size: chunks encoded and decoded together.
        task: "transcribe", or "translate" for Whisper's own translation to English.
        first_30_seconds: return the frames that the released code used: those of the first 30 s with their padding. The
            transcript is of the whole recording, in chunks padded to 30 s.
        precision: of the encoder, "float32", "bfloat16" or "float16"; decoding is float32. Features keep a
            cosine above 0.999 in bfloat16.
        retries: how often text that fails the checks of repetition and confidence is decoded again with sampling, 0 to
            5. Captions in babble at 2 dB took 1.19 CPU-s with five and 0.51 with none.
        alternatives: other texts to sample of each chunk whose greedy text is not certain, see `decoding`.

    Raises:
        ValueError: if the model does not know the language, or the task, precision, batch size or retries are invalid.
    """

    def __init__(
        self,
        model: Whisper,
        language: str | None = "en",
        batch_size: int = 16,
        *,
        task: str = "transcribe",
        first_30_seconds: bool = False,
        precision: str = "float32",
        retries: int = MOST_RETRIES,
        alternatives: int = 0,
    ) -> None:
        if language is not None and language not in LANGUAGES:
            raise ValueError(f"unknown language {language!r}; give a code such as 'en', or None to detect it")
        if language not in (None, "en") and not model.is_multilingual:
            raise ValueError(f"language is {language!r}, but this Whisper knows English only; choose one without '.en'")
        if task not in TASKS or (task == "translate" and not model.is_multilingual):
            raise ValueError(
                f"task is {task!r}; it must be transcribe, or translate with a Whisper of many languages, without '.en'"
            )
        if precision not in _PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(_PRECISIONS)}")
        if batch_size < 1:
            raise ValueError(f"batch size is {batch_size}; it must be 1 or more")
        if not 0 <= retries <= MOST_RETRIES:
            raise ValueError(f"retries is {retries}; 0 to {MOST_RETRIES} are possible")
        self.model = model
        self.language = language
        self.batch_size = batch_size
        self.task = task
        self.first_30_seconds = first_30_seconds
        self.precision = _PRECISIONS[precision]
        self.retries = retries
        self.alternatives = alternatives

    @torch.no_grad()
    def read(self, waveforms: Sequence[NDArray[np.float32]], check: Callable[[], None] = lambda: None) -> list[Speech]:
        """Transcribe recordings.

        Args:
            waveforms: float32 mono at 16 kHz in [-1, 1], each (samples,); empty ones are allowed.
            check: called before each batch; an exception that it raises ends the call.

        Raises:
            ValueError: if a waveform has another shape or is not finite.
        """
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or not np.isfinite(waveform).all():
                raise ValueError(f"waveform {index} has shape {waveform.shape}; finite samples (samples,) are needed")
        languages: dict[int, str] = {}
        readings: list[dict[int, tuple[Reading, NDArray[np.float16]]]] = [{} for _ in waveforms]
        jobs = self._plan(waveforms)
        while jobs:
            failed = []
            for batch in self._iter_batches(jobs):
                check()
                features = self._encode(batch)
                for job, row, reading in zip(batch, features, self._decode(batch, features, languages), strict=True):
                    if reading.rejected == "repetitive" and not job.is_last_attempt:
                        failed.append(job._replace(attempt=job.attempt + 1))
                    else:
                        readings[job.recording][job.place] = (reading, self._frames_of(job, row))
            jobs = failed
        return [
            self._join(waveform, [parts[place] for place in sorted(parts)], languages.get(recording))
            for recording, (waveform, parts) in enumerate(zip(waveforms, readings, strict=True))
        ]

    def _plan(self, waveforms: Sequence[NDArray[np.float32]]) -> list[_Job]:
        return [
            _Job(recording, place, chunk, waveform[chunk.start : chunk.stop])
            for recording, waveform in enumerate(waveforms)
            for place, chunk in enumerate(split_into_chunks(waveform, always_30_seconds=self.first_30_seconds))
        ]

    def _iter_batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Yield chunks of one group, of similar length."""
        jobs = sorted(jobs, key=lambda job: (job.group, len(job.samples)))
        start = 0
        while start < len(jobs):
            stop = start + 1
            while stop < min(len(jobs), start + self.batch_size) and jobs[start].group == jobs[stop].group:
                stop += 1
            yield jobs[start:stop]
            start = stop

    def _encode(self, batch: list[_Job]) -> Tensor:
        """Return the frames (B, T, audio_dim) of the padded chunks, float32."""
        return self._encode_samples([job.samples for job in batch], batch[0].padded_seconds)

    def _encode_samples(self, samples: list[NDArray[np.float32]], padded_seconds: int) -> Tensor:
        device, num_mels = self.model.device, self.model.dims.n_mels
        mel = torch.stack([compute_mel(one, padded_seconds, num_mels, device) for one in samples])
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            return encode_mel(self.model.encoder, mel).float()

    def _decode(self, batch: list[_Job], features: Tensor, languages: dict[int, str]) -> list[Reading]:
        """Decode the chunks; add the languages of first chunks to `languages`."""
        if self.language is not None:
            languages.update({job.recording: self.language for job in batch})
        elif batch[0].place == 0 and batch[0].attempt == 0:
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
                decoded = decode_chunks(
                    self.model,
                    features[rows],
                    language,
                    batch[0].padded_seconds,
                    [batch[row].samples for row in rows],
                    retries=self.retries,
                    task=self.task,
                    leave_repetitive=not batch[0].is_last_attempt,
                    alternatives=self.alternatives,
                )
                for row, reading in zip(rows, decoded, strict=True):
                    readings[row] = reading
        return [reading for reading in readings if reading is not None]

    def _frames_of(self, job: _Job, row: Tensor) -> NDArray[np.float16]:
        return row[: None if self.first_30_seconds else job.chunk.num_frames].half().cpu().numpy()

    def _join(
        self,
        waveform: NDArray[np.float32],
        parts: list[tuple[Reading, NDArray[np.float16]]],
        language: str | None,
    ) -> Speech:
        readings = [reading for reading, _ in parts] or [_SILENCE]
        weights = [reading.num_tokens + 1 for reading in readings]  # the end of the text is a token too
        logprobs = [reading.avg_logprob for reading in readings]
        is_rejected = all(reading.rejected for reading in readings)
        return Speech(
            transcript=" ".join(reading.transcript for reading in readings if reading.transcript),
            unfiltered_transcript=" ".join(reading.unfiltered for reading in readings if reading.unfiltered),
            greedy_transcript=" ".join(reading.greedy for reading in readings if reading.greedy),
            language=language or self.language or "en",
            avg_logprob=float(np.average(logprobs, weights=weights)),
            no_speech_prob=min(reading.no_speech_prob for reading in readings),
            compression_ratio=max(reading.compression_ratio for reading in readings),
            temperature=max(reading.temperature for reading in readings),
            rejected=readings[0].rejected if is_rejected else None,
            alternatives=join_alternatives([reading.alternatives for reading in readings]) if self.alternatives else (),
            features=self._join_frames(waveform, [frames for _, frames in parts]),
        )

    def _join_frames(self, waveform: NDArray[np.float32], frames: list[NDArray[np.float16]]) -> NDArray[np.float16]:
        if not frames:
            return np.zeros((0, self.model.dims.n_audio_state), np.float16)
        if self.first_30_seconds and len(frames) > 1:  # the first chunk ends before 30 s, in a pause
            return self._encode_samples([waveform[:MAX_SAMPLES]], MAX_SECONDS)[0].half().cpu().numpy()
        return np.concatenate(frames)


_SILENCE = Reading(
    transcript="",
    unfiltered="",
    greedy="",
    avg_logprob=0.0,
    no_speech_prob=1.0,
    compression_ratio=compression_ratio(""),
    temperature=0.0,
    num_tokens=0,
    rejected="no_speech",
    alternatives=(Alternative("", 0.0, 0),),
)
