"""What a system hears in a recording: text, sound, and their fusion; and Whisper with a reader for each task."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brewclip.config import ModelConfig
from brewclip.config.settings import Task
from brewclip.models.whisper import SpeechReader
from brewclip.pretrained.load import load_whisper
from brewclip.pretrained.precision import resolve_precision

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """One recording as a system heard it; embeddings are (E,) float32 of unit length.

    Attributes:
        transcript: text that the system reads; in English if the task was to translate; may be empty, and is for a
            system that hears waveforms instead.
        language: that was spoken, a code such as "en", given or detected.
        confidence: p of docs/adapter.md, the mean probability of a token, in 0..1.
        rejection: why Whisper's checks rejected the transcript: "no_speech", "repetitive", "low_confidence"; or "".
        fused: the embedding that is searched with.
        text: of the transcript; None for a system that reads no text.
        sound: of the sound; None for a system that has no acoustic channel.
        weight: of the sound against the text, see `fused_with`; 0 unless there are both.
        timings_seconds: stage -> wall time of the batch that the recording was part of.
    """

    transcript: str
    language: str
    confidence: float
    rejection: str
    fused: Vector
    text: Vector | None
    sound: Vector | None
    weight: float
    timings_seconds: dict[str, float] = field(default_factory=dict)

    def fused_with(self, weight: float | None) -> Vector:
        """Return the embedding with another weight of the sound, (E,); None is the system's own."""
        if weight is None or self.text is None or self.sound is None:
            return self.fused
        return fuse(self.text, self.sound, weight)


def fuse(text: Vector, sound: Vector, weight: float) -> Vector:
    """Return normalize(text + weight * sound), (E,), of two unit vectors.

    Raises:
        ValueError: if the weight is negative or not finite.
    """
    if not 0 <= weight < np.inf:
        raise ValueError(f"the weight of the sound is {weight}; it must be 0 or more, and finite")
    fused: Vector = (text + weight * sound).astype(np.float32)
    length = np.linalg.norm(fused)
    return (fused / length).astype(np.float32) if length > 0 else text  # opposite ones leave nothing to choose


def heard_as(model: ModelConfig, task: str, language: str | None) -> tuple[Task, str]:
    """Resolve task and language of a recording: "" and None are the system's own.

    Who asks for a translation and gives no language has it detected, unless the system translates already.
    """
    if task not in ("", "transcribe", "translate"):
        raise ValueError(f"task is {task!r}; it must be transcribe or translate")
    if language is None:
        language = "" if task == "translate" != model.task else model.language
    return ("translate" if (task or model.task) == "translate" else "transcribe"), language


class SpeechReaders:
    """Whisper, loaded on first use, with a reader for each task and language.

    Args:
        whisper: name of the model.
        device: to compute on.
        first_30_seconds: see `SpeechReader`.
        precision: likewise, or "auto", see `resolve_precision`.
        alternatives: likewise.
    """

    def __init__(
        self, whisper: str, device: torch.device, *, first_30_seconds: bool, precision: str, alternatives: int
    ) -> None:
        self.whisper, self.device = whisper, device
        self._settings: dict[str, Any] = {
            "first_30_seconds": first_30_seconds,
            "precision": resolve_precision(precision, device),
            "alternatives": alternatives,
        }
        self._readers: dict[tuple[str, str], SpeechReader] = {}

    def reader(self, task: str, language: str) -> SpeechReader:
        """Return the reader of a task, "transcribe" or "translate", and a language; empty detects it.

        Raises:
            ValueError: if this Whisper does not know the language or the task.
        """
        made = self._readers.get((task, language))
        if made is None:
            one = next(iter(self._readers.values()), None)
            model = one.model if one else load_whisper(self.whisper).to(self.device)
            made = SpeechReader(model, language or None, task=task, **self._settings)
            self._readers[task, language] = made
        return made
