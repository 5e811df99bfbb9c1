"""Whisper with a reader for each task and language, and which of them a recording asks for."""

from typing import Any

import torch

from brewclip.config import ModelConfig
from brewclip.config.settings import Task
from brewclip.models.whisper import SpeechReader
from brewclip.pretrained.precision import resolve_precision
from brewclip.pretrained.whisper import load_whisper


def heard_as(model: ModelConfig, task: str, language: str | None) -> tuple[Task, str]:
    """Resolve task and language of a recording: "" and None are the system's own.

    Without a language, a translation detects it, unless the system itself translates.
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
