"""RAVDESS speech: two sentences spoken by 24 actors in eight emotions, of which four are used; no images.

    python datasets/ravdess.py --source DIR --dest s3://bucket/ravdess

DIR holds, at any depth, Actor_01/ to Actor_24/ with MM-VV-EE-II-SS-RR-AA.wav (or .flac): modality, channel, emotion,
intensity, statement, repetition, actor. Actors 19 to 24 are test, as published; those of --dev-actors are dev, all
others train. See docs/corpora/ravdess.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from brewclip.config.ranges import Range
from brewclip.corpora.options import SourceOptions
from brewclip.corpora.recipe import run_recipe
from brewclip.corpora.rounds import FileCorpus, Recording
from brewclip.corpora.source import Source
from brewclip.errors import UserError

FORMATS = (".wav", ".flac")
CLIP_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)\.(wav|flac)", re.IGNORECASE)
SPEECH = ("03", "01")  # audio only, speech
EMOTIONS = {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry"}
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
NUM_ACTORS = 24
PUBLISHED_TEST_ACTORS = tuple(range(19, NUM_ACTORS + 1))


@dataclass(frozen=True, kw_only=True)
class RavdessOptions(SourceOptions):
    """RAVDESS in four classes: neutral, happy, sad, angry."""

    keep_calm_out: bool = False
    """Leave calm out instead of counting it as neutral."""
    drop_duplicates: bool = False
    """Reject a repetition that has the same bytes as the first one (one pair); published counts include it."""
    test_actors: tuple[Annotated[int, Range(1, NUM_ACTORS)], ...] = PUBLISHED_TEST_ACTORS
    """Actors of the split test, 1..24."""
    dev_actors: tuple[Annotated[int, Range(1, NUM_ACTORS)], ...] = ()
    """Actors of a split dev, which the published experiments do not have; none given writes no dev."""


def read_corpus(options: RavdessOptions) -> FileCorpus:
    """List the clips; others than the four classes are left out and counted.

    Raises:
        UserError: if an actor is in two splits, or requested and missing.
    """
    check_actors(options)
    source = Source(options.source)
    listed = list(recordings(source, options))
    return FileCorpus("ravdess", source, listed, 0, remarks_on_splits(listed, options))


def check_actors(options: RavdessOptions) -> None:
    """Raise a `UserError` if an actor is in two splits."""
    both = sorted(set(options.test_actors) & set(options.dev_actors))
    if both:
        raise UserError(f"actor {both[0]} is in --test-actors and in --dev-actors: an actor has one split")


def remarks_on_splits(listed: list[Recording], options: RavdessOptions) -> list[str]:
    """Return a note if the split test is empty because its actors are missing.

    Raises:
        UserError: if the actors of a flag are missing.
    """
    found = sorted({int(recording.speaker) for recording in listed if recording.split})
    names = ", ".join(map(str, found))
    asked = set(options.dev_actors)
    asked |= set(options.test_actors) if options.test_actors != PUBLISHED_TEST_ACTORS else set()
    if asked - set(found):
        raise UserError(f"--source {options.source} has no clip of actor {min(asked - set(found))}, only of {names}")
    if found and not set(options.test_actors) & set(found):
        return [
            f"there is no split test: none of its actors {', '.join(map(str, options.test_actors))} is among those "
            f"found, {names}; --test-actors {found[-1]} takes one of them"
        ]
    return []


def recordings(source: Source, options: RavdessOptions) -> Iterator[Recording]:
    """Yield every wav or flac file once, in the order of names; copies in a second folder are left out.

    Raises:
        UserError: if no file has the name of a clip.
    """
    found: dict[str, str] = {}
    num_clips = 0
    for name in source.names:
        base = name.rpartition("/")[2]
        stem, _, _ = base.rpartition(".")
        if not base.lower().endswith(FORMATS) or base.startswith("._"):
            continue
        fields = CLIP_NAME.fullmatch(base)
        num_clips += fields is not None
        if fields is None or stem in found:
            yield Recording("", "", name, problem="copy_of_file" if fields else "not_a_clip")
            continue
        found[stem] = name
    if not num_clips:
        raise UserError(
            f"--source {source.location} has no Actor_01/03-01-01-01-01-01-01.wav or .flac, nor another clip of RAVDESS"
        )
    for stem in sorted(found):
        yield _recording(source, stem, found, options)


def _recording(source: Source, stem: str, found: dict[str, str], options: RavdessOptions) -> Recording:
    modality, channel, emotion, intensity, statement, repetition, actor = stem.split("-")
    problem = ""
    if (modality, channel) != SPEECH or statement not in STATEMENTS or not 1 <= int(actor) <= NUM_ACTORS:
        problem = "not_speech"
    elif emotion not in EMOTIONS:
        problem = "other_emotion"
    elif emotion == "02" and options.keep_calm_out:
        problem = "calm"
    split = "test" if int(actor) in options.test_actors else "dev" if int(actor) in options.dev_actors else "train"
    split = "" if problem else split
    first = f"{modality}-{channel}-{emotion}-{intensity}-{statement}-01-{actor}"
    if split and options.drop_duplicates and repetition != "01" and first in found:
        problem = "duplicate" if _same_bytes(source, found[first], found[stem]) else ""
    name = EMOTIONS.get(emotion, "")
    return Recording(
        split=split,
        image_id=stem,
        audio=found[stem],
        text=STATEMENTS.get(statement, ""),
        speaker=actor,
        emotion="neutral" if name == "calm" else name,
        caption_id=stem,
        problem=problem,
    )


def _same_bytes(source: Source, one: str, other: str) -> bool:
    storage = source.storage
    return storage.size(one) == storage.size(other) and storage.read(one) == storage.read(other)


if __name__ == "__main__":
    run_recipe(__doc__, RavdessOptions, read_corpus)
