"""How much text and speech of a split did not fit into the model, counted while it is read."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from brewclip.data.batches import InputLengths


@dataclass
class Cuts:
    """Counts over samples; those of a text include its start and end token.

    Attributes:
        texts, cut_texts: samples whose text is read, and those of them whose text was cut.
        tokens, cut_tokens: of these texts.
        recordings, cut_recordings: samples, and those of them whose speech was cut.
        frames, cut_frames: of these recordings, 20 ms each.
    """

    texts: int = 0
    cut_texts: int = 0
    tokens: int = 0
    cut_tokens: int = 0
    recordings: int = 0
    cut_recordings: int = 0
    frames: int = 0
    cut_frames: int = 0

    def add(self, samples: Iterable[InputLengths]) -> None:
        """Count samples."""
        for lengths in samples:
            self.texts += lengths.tokens > 0
            self.cut_texts += lengths.cut_tokens > 0
            self.tokens += lengths.tokens
            self.cut_tokens += lengths.cut_tokens
            self.recordings += 1
            self.cut_recordings += lengths.cut_frames > 0
            self.frames += lengths.frames
            self.cut_frames += lengths.cut_frames

    def __add__(self, other: "Cuts") -> "Cuts":
        return Cuts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Cuts)))

    def shares(self) -> dict[str, float]:
        """Return what share of texts, tokens, recordings and frames was cut, in 0..1."""
        return {
            name: getattr(self, f"cut_{name}") / max(1, getattr(self, name))
            for name in ("texts", "tokens", "recordings", "frames")
        }

    def __str__(self) -> str:
        if not self.texts:
            text = "no text is read"
        else:
            text = _part(self.cut_texts, self.texts, "texts", self.cut_tokens, self.tokens, "tokens")
        speech = _part(self.cut_recordings, self.recordings, "recordings", self.cut_frames, self.frames, "frames")
        return f"{text}; {speech}"


def _part(cut: int, whole: int, name: str, cut_units: int, units: int, unit: str) -> str:
    share = 100 * cut_units / max(1, units)
    return f"{cut:,} of {whole:,} {name} cut, {cut_units:,} of {units:,} {unit} ({share:.1f} %)"
