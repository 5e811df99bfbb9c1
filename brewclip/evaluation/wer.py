"""Word errors of one utterance: reference text against transcript, after Whisper's normalisation."""

from dataclasses import dataclass

import jiwer
import numpy as np
import whisper.normalizers

from brewclip.data.schema import Sample
from brewclip.errors import UserError

BAND_EDGES = (0.0, 0.1, 0.3, 0.6, np.inf)  # upper bounds; the first band holds utterances without errors


@dataclass(frozen=True)
class Utterance:
    """Reference text, transcript and Whisper's decoding statistics of one recording.

    Attributes:
        key: key of the sample.
        spoken, heard: normalised reference text and transcript.
        num_words: words of the reference text.
        num_errors: words substituted, deleted or inserted.
        rejected: reason for which Whisper's rules rejected the transcript, or empty.
        compression_ratio: compression ratio of the transcript; high for repetition.
        temperature: decoding temperature; 0 if greedy decoding was accepted.
    """

    key: str
    spoken: str
    heard: str
    num_words: int
    num_errors: int
    rejected: str
    compression_ratio: float
    temperature: float

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; above 1 if there are more errors than words."""
        return self.num_errors / self.num_words


def count_errors(spoken: str, heard: str) -> int:
    """Return the smallest number of words to substitute, delete and insert between two normalised texts."""
    if not spoken:
        return len(heard.split())
    found = jiwer.process_words(spoken, heard)
    return found.substitutions + found.deletions + found.insertions


def make_utterance(sample: Sample, normalise: whisper.normalizers.EnglishTextNormalizer) -> Utterance | None:
    """Compare the reference text and transcript of a sample; return None without a reference text.

    Raises:
        UserError: if the sample was not extracted.
    """
    facts = sample.metadata
    if not isinstance(facts.get("text"), str):
        return None
    if not isinstance(facts.get("transcript"), str):
        raise UserError(f"sample {sample.key!r} has no transcript: run jobs/extract.py first")
    spoken, heard = normalise(facts["text"]), normalise(facts["transcript"])
    return Utterance(
        key=sample.key,
        spoken=spoken,
        heard=heard,
        num_words=len(spoken.split()),
        num_errors=count_errors(spoken, heard),
        rejected=facts.get("rejected") or "",
        compression_ratio=float(facts.get("compression_ratio", 0.0)),
        temperature=float(facts.get("temperature", 0.0)),
    )
