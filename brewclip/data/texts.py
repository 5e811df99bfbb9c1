"""Text input of a sample: its transcript, or several alternatives, with their confidence."""

import math

from brewclip.data.schema import ALTERNATIVES, TEXT_FIELDS, BadSample, Sample


def text_of(sample: Sample, transcript: str) -> str:
    """Return the text of a sample that a setting `data.transcript` reads; raises `BadSample` with the cause text."""
    field = TEXT_FIELDS[transcript]
    text = sample.metadata.get(field)
    if not isinstance(text, str):
        raise BadSample("text", f"sample {sample.key!r} has no {field}")
    return text


def readings_of(sample: Sample, transcript: str) -> tuple[str, ...]:
    """Return the texts whose mean a model reads: one, or with `asr_mean` Whisper's alternatives, the greedy one first.

    Raises:
        BadSample: with the cause text.
    """
    if transcript != "asr_mean":
        return (text_of(sample, transcript),)
    pairs = sample.metadata.get(ALTERNATIVES)
    if not isinstance(pairs, list) or not pairs:
        raise BadSample(
            "text", f"sample {sample.key!r} has no {ALTERNATIVES}: run jobs/extract.py with --extraction.alternatives 3"
        )
    texts = tuple(pair[0] for pair in pairs if isinstance(pair, list) and pair)
    if len(texts) < len(pairs) or not all(isinstance(text, str) for text in texts):
        raise BadSample("text", f"sample {sample.key!r} has {ALTERNATIVES} that are no texts")
    return texts


def confidence_of(sample: Sample, transcript: str) -> float:
    """Return the confidence of a text in 0..1: Whisper's geometric mean probability of a token, exp(avg_logprob).

    0 where it is empty or Whisper's checks rejected it, a greedy one at the first attempt; 1 for what was read aloud.
    """
    if transcript == "ground_truth":
        return 1.0
    metadata = sample.metadata
    avg_logprob = metadata.get("avg_logprob")
    is_greedy = transcript in ("asr_greedy", "asr_mean")
    failed = metadata.get("rejected") or (is_greedy and metadata.get("temperature"))
    if failed or not metadata.get(TEXT_FIELDS[transcript]) or isinstance(avg_logprob, bool):
        return 0.0
    if not isinstance(avg_logprob, int | float) or not math.isfinite(avg_logprob):
        return 0.0
    return math.exp(min(0.0, max(-100.0, avg_logprob)))
