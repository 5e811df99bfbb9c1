"""What a system hears in a recording: text, sound, and their fusion. Needs no model, so a web process can import it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
