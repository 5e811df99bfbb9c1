"""RAVDESS, its speech: two sentences spoken by 24 actors in eight emotions, of which four are kept; no pictures.

    python datasets/ravdess.py --source DIR --dest s3://bucket/ravdess

DIR holds, at any depth, Actor_01/ to Actor_24/ with MM-VV-EE-II-SS-RR-AA.wav: modality, channel, emotion, intensity,
statement, repetition, actor. Actors 1 to 18 train, 19 to 24 test. See docs/corpora/ravdess.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from brewclip.config import UserError
from brewclip.corpora import FileCorpus, Recording, Source
from brewclip.recipe import SourceOptions, run_recipe

CLIP_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)\.wav", re.IGNORECASE)
SPEECH = ("03", "01")  # audio only, speech
EMOTIONS = {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry"}
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
NUM_TRAIN_ACTORS, NUM_ACTORS = 18, 24


@dataclass(frozen=True, kw_only=True)
class RavdessOptions(SourceOptions):
    """RAVDESS in four classes: neutral, happy, sad, angry."""

    keep_calm_out: bool = False
    """Leave calm out instead of counting it as neutral."""
    drop_duplicates: bool = False
    """Reject a repetition that has the same bytes as the first one (one pair); published counts include it."""


def read_corpus(options: RavdessOptions) -> FileCorpus:
    """List the clips; what is not of the four classes is left out and counted."""
    source = Source(options.source)
    return FileCorpus("ravdess", source, recordings(source, options), 0)


def recordings(source: Source, options: RavdessOptions) -> Iterator[Recording]:
    """Yield every wav file once, in the order of names; copies in a second folder are left out.

    Raises:
        UserError: if no file has the name of a clip.
    """
    found: dict[str, str] = {}
    num_clips = 0
    for name in source.names:
        base = name.rpartition("/")[2]
        if not base.lower().endswith(".wav") or base.startswith("._"):
            continue
        fields = CLIP_NAME.fullmatch(base)
        num_clips += fields is not None
        if fields is None or base in found:
            yield Recording("", "", name, problem="copy_of_file" if fields else "not_a_clip")
            continue
        found[base] = name
    if not num_clips:
        raise UserError(f"--source {source.location} has no Actor_01/03-01-01-01-01-01-01.wav or other clip of RAVDESS")
    for base in sorted(found):
        yield _recording(source, base, found, options)


def _recording(source: Source, base: str, found: dict[str, str], options: RavdessOptions) -> Recording:
    modality, channel, emotion, intensity, statement, repetition, actor = base[:-4].split("-")
    problem = ""
    if (modality, channel) != SPEECH or statement not in STATEMENTS or not 1 <= int(actor) <= NUM_ACTORS:
        problem = "not_speech"
    elif emotion not in EMOTIONS:
        problem = "other_emotion"
    elif emotion == "02" and options.keep_calm_out:
        problem = "calm"
    split = "" if problem else "train" if int(actor) <= NUM_TRAIN_ACTORS else "test"
    first = f"{modality}-{channel}-{emotion}-{intensity}-{statement}-01-{actor}{base[-4:]}"
    if split and options.drop_duplicates and repetition != "01" and first in found:
        problem = "duplicate" if _same_bytes(source, found[first], found[base]) else ""
    name = EMOTIONS.get(emotion, "")
    return Recording(
        split=split,
        image_id=base[:-4],
        audio=found[base],
        text=STATEMENTS.get(statement, ""),
        speaker=actor,
        emotion="neutral" if name == "calm" else name,
        caption_id=base[:-4],
        problem=problem,
    )


def _same_bytes(source: Source, one: str, other: str) -> bool:
    storage = source.storage
    return storage.size(one) == storage.size(other) and storage.read(one) == storage.read(other)


if __name__ == "__main__":
    run_recipe(__doc__, RavdessOptions, read_corpus)
