"""Truncation counts: how much text and speech of a split did not fit into the model."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from brewclip.data.batches import InputLengths


@dataclass
class TruncationCounts:
    """Counts over samples; those of a text include its start and end token.

    Attributes:
        texts, truncated_texts: samples whose text is read, and those of them whose text was truncated.
        tokens, truncated_tokens: of these texts.
        recordings, truncated_recordings: samples, and those of them whose speech was truncated.
        frames, truncated_frames: of these recordings, 20 ms each.
    """

    texts: int = 0
    truncated_texts: int = 0
    tokens: int = 0
    truncated_tokens: int = 0
    recordings: int = 0
    truncated_recordings: int = 0
    frames: int = 0
    truncated_frames: int = 0

    def add(self, samples: Iterable[InputLengths]) -> None:
        """Count samples."""
        for lengths in samples:
            self.texts += lengths.tokens > 0
            self.truncated_texts += lengths.truncated_tokens > 0
            self.tokens += lengths.tokens
            self.truncated_tokens += lengths.truncated_tokens
            self.recordings += 1
            self.truncated_recordings += lengths.truncated_frames > 0
            self.frames += lengths.frames
            self.truncated_frames += lengths.truncated_frames

    def __add__(self, other: "TruncationCounts") -> "TruncationCounts":
        return TruncationCounts(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(TruncationCounts))
        )

    def shares(self) -> dict[str, float]:
        """Return the truncated shares of texts, tokens, recordings and frames, in 0..1."""
        return {
            name: getattr(self, f"truncated_{name}") / max(1, getattr(self, name))
            for name in ("texts", "tokens", "recordings", "frames")
        }

    def __str__(self) -> str:
        if not self.texts:
            text = "no text is read"
        else:
            text = _part(self.truncated_texts, self.texts, "texts", self.truncated_tokens, self.tokens, "tokens")
        speech = _part(
            self.truncated_recordings, self.recordings, "recordings", self.truncated_frames, self.frames, "frames"
        )
        return f"{text}; {speech}"


def _part(truncated: int, whole: int, name: str, truncated_units: int, units: int, unit: str) -> str:
    share = 100 * truncated_units / max(1, units)
    return f"{truncated:,} of {whole:,} {name} truncated, {truncated_units:,} of {units:,} {unit} ({share:.1f} %)"
